// The player: a clock at the world's own pace, a canvas, and the controls around it.

import { Agent } from "./agent.js";
import { Beside } from "./beside.js";
import { EMPTY, decode, encode, hash, hex, packed } from "./link.js";
import { Gamepads } from "./gamepad.js";
import { Input, releases, taken } from "./input.js";
import { keep, kept } from "./kept.js";
import { Meter } from "./meter.js";
import {
  $, badge, drawKeys, drawStarts, fit, fullScreen, markStart, outOfReach, save, setTemperature, tell, tidySeed, veil,
} from "./panel.js";
import { onPicture, pixels, squeeze } from "./picture.js";
import { showRecorder, showTake } from "./record.js";
import { Stillness } from "./still.js";
import { Unsure } from "./unsure.js";
import { Wire } from "./wire.js";

const IN_FLIGHT = 2; // steps asked for and not yet seen: enough to hide a network, too few to feel
const ASLEEP = 180_000; // ms without a key until real time stops, so that a forgotten tab does not generate frames all night
const LONGEST = 20_000; // steps of a session that a link can hold
const SPEEDS = [1, 0.5, 0.25]; // of time, as its button takes them in turn
const FAST = 10; // ms a step while a session is brought back: the server allows 120 messages a second

const view = $("view");
const paint = view.getContext("2d");
const meter = new Meter($("fps"), $("p50"), $("p95"));

let world = null; // the server's greeting
let input = null;
let image = null; // ImageData of one frame
let met = false; // greeted once: what the player chose since then is kept through reconnections
let goodbye = null; // why the server closed, when it said
const [gamepads, agent, beside, unsure] = [new Gamepads(), new Agent(), new Beside(), new Unsure()];
// played: its steps; marks: the hash of all frames up to each of them
const session = { seed: 0, start: 0, picture: null, packed: "", played: [], marks: [], from: 0, shown: false };
const sent = new Map(); // id of a step not yet answered -> {action, temperature, since}
const stillness = new Stillness();
let stuck = false; // the badge says that nothing moves
let replay = null; // {played, end, temperature, at, text, back}; back: what is said while and after this tab's own session is brought back, in a hurry
let live = true; // real time, or step by step
let speed = SPEEDS[0];
let still = true; // real time waits for a first key
let due = 0;
let over = false; // the real game has ended: no step is possible until another take begins
let touched = 0; // when a key was last pressed

const wire = new Wire({
  async world(greeting) {
    world = greeting;
    const [height, width] = world.frame;
    Object.assign(view, { width, height });
    image = paint.createImageData(width, height);
    document.title = `${world.name} · Reverie`;
    $("name").textContent = world.name;
    $("note").textContent = world.notes.join(" ");
    if (!met) [$("seed").value, $("temperature").value] = [world.seed, world.temperature];
    setTemperature($("temperature").value);
    met = true;
    showRecorder(Boolean(world.recorder));
    input = new Input(world, $("pad"), pressed);
    for (const each of [agent, beside, unsure]) each.greet(world, input);
    session.start = world.starts ? Math.min(Math.max(session.start, 0), world.starts - 1) : -1;
    drawStarts(world.pictures, choose);
    for (const format of ["gif", "mp4"]) $(format).hidden = !world.formats.includes(format);
    drawKeys(world, input, shortcuts());
    setLive(live);
    fit();
    if (session.start >= 0) session.picture = null;
    else await setPicture(session.picture ?? new Uint8Array(world.frame.reduce((a, b) => a * b)).fill(128));
    openLink();
  },
  frame({ step, action, id, bytes, unsure: number }) {
    if (id < session.from) return; // of the session before
    agent.advice = null; // it was for the frame before
    const asked = sent.get(id);
    for (const other of sent.keys()) if (other <= id) sent.delete(other); // the server merges steps that come too fast
    if (asked) session.played.push({ action, temperature: asked.temperature });
    session.marks[session.played.length] = hash(bytes, seen());
    paint.putImageData(pixels(bytes, world.frame, image), 0, 0);
    beside.imagined(bytes);
    unsure.hear(number);
    $("step").textContent = step;
    meter.drawn(asked?.since);
    input.show(step ? action : -1);
    if (!session.shown) begun();
    else if (!replay) watch(bytes, action);
    if (replay && step === replay.played.length) replayed();
  },
  real: ({ id, bytes }) => id < session.from || beside.real(bytes),
  agent: (advice) => advice.id < session.from || agent.hear(advice),
  take(state) {
    if (state.id < session.from) return; // of the take before
    showTake(state);
    if (!state.frames) return reseed(); // it was kept: the next one begins
    over = state.over;
    if (over) badge("The game is over. Keep this take (K), or discard it (N).");
  },
  gif: (message) => save(message.bytes, `${world.name}-${session.seed}`, "gif", "image/gif"),
  mp4: (message) => save(message.bytes, `${world.name}-${session.seed}`, "mp4", "video/mp4"),
  busy: ({ text }) => (goodbye = { text, again: 5 }),
  bye: ({ text }) => (goodbye = { text }),
  error: ({ text }) => tell(text),
  note: ({ text }) => ($("note").textContent = [...world.notes, text].join(" ")),
  closed() {
    const { text, again } = goodbye ?? { text: outOfReach(met), again: 2 };
    goodbye = null;
    keepDream();
    world = null;
    session.shown = false;
    veil(text, again ? "" : "Come back", reconnect);
    if (again) setTimeout(reconnect, again * 1000);
  },
});

function reconnect() {
  if (wire.closed) wire.open();
}

// ---- a session -------------------------------------------------------------------------------------------------------

function begin() {
  if (!world) return;
  sent.clear();
  input.releaseAll();
  for (const each of [stillness, agent, unsure]) each.clear();
  stuck = over = false;
  Object.assign(session, { played: [], marks: [], shown: false, seed: Number($("seed").value) });
  if (session.start === -1) wire.sendPicture(session.picture);
  session.from = wire.send({ type: "reset", seed: session.seed, start: session.start });
  markStart(session.start);
  still = true;
}

function begun() {
  session.shown = true;
  $("veil").hidden = true;
  if (replay?.played.length)
    return badge(replay.back ? `${replay.back[0]} Esc: stop here.` : "Replaying. Esc: stop here and play on.");
  if (replay) return replayed();
  if (world.actions.size === 0 || agent.plays) still = !live;
  badge(still && live ? `Press a key, and the ${world.recorder ? "game" : "session"} begins.` : "");
}

function restart() {
  replay = null;
  if (location.hash) history.replaceState(null, "", location.pathname + location.search);
  $("link").hidden = true;
  begin();
}

// Take back the last second, or the last step: the same session again, in a hurry and without its end.
function undo() {
  const { played, marks } = session;
  const stays = Math.max(0, played.length - (live ? Math.ceil(world.fps) : 1));
  if (!session.shown || replay || world.recorder || !played.length) return;
  const rest = played.slice(0, stays);
  const [temperature, text] = [Number($("temperature").value), encoded(rest, marks[stays])];
  replay = { played: rest, end: hex(marks[stays]), temperature, at: 0, text, back: ["Going back.", "Taken back."] };
  begin();
}

function pressed() {
  touched = performance.now();
  if (replay) return;
  if (agent.plays) handOver(false);
  if (still && !over) badge("");
  still = false;
  due = Math.min(due, touched); // a key is answered at once; the pace is kept over what follows
  advance(touched);
}

function tick() {
  requestAnimationFrame(tick);
  const now = performance.now();
  if (input) gamepads.poll(input);
  advance(now);
  if (replay?.back) advance(now); // two steps for each picture of the screen, if they are due
}

function advance(now) {
  if (!world || !wire.ready || !session.shown || over || now < due || sent.size >= IN_FLIGHT) return;
  if (live && !still && !replay && now - touched > ASLEEP) {
    still = true;
    badge("Asleep. Press a key to go on.");
  }
  const onward = () => (!live || still ? null : agent.plays ? agent.next(sent.size) : { action: world.idle });
  const wanted = replay ? replay.played[replay.at] : input.next(live) ?? onward();
  if (!wanted) return;
  if (replay) {
    replay.at++;
    setTemperature(wanted.temperature);
  }
  const period = replay?.back ? FAST : 1000 / world.fps / speed;
  due = now - due > 2 * period ? now + period : due + period;
  const step = { action: wanted.action, temperature: wanted.temperature ?? Number($("temperature").value) };
  sent.set(wire.send({ type: "step", ...step }), { ...step, since: wanted.since });
}

// Let the agent play, or take over from it, as any key does.
function handOver(plays = !agent.plays || still) {
  if (!world.agent || replay || over) return;
  agent.hand(plays);
  if (plays) setLive(true);
  touched = performance.now();
  still = !plays;
  badge(plays ? "The agent plays. Any key: it is yours again." : "");
}

// Say so when nothing moves any more, and no longer once something does.
function watch(bytes, action) {
  const frames = stillness.seen(bytes, action, world);
  if (frames && !stuck) badge(`Nothing has moved for ${frames} frames. Start again (R), or take another seed (N).`);
  else if (stuck && !frames) badge("");
  stuck = frames > 0;
}

// ---- links ---------------------------------------------------------------------------------------------------------

// Open the link in the address, or go on with the session that this tab kept since.
async function openLink() {
  replay = null;
  if (world.recorder) return begin(); // a real game is not brought back
  const own = kept(world.name);
  const back = own?.hash === location.hash;
  const text = back ? own.text : location.hash.slice(1);
  if (text) {
    try {
      const size = world.frame.reduce((a, b) => a * b);
      const { count } = world.actions;
      const link = await decode(text, { actions: count, starts: world.starts, size, longest: LONGEST });
      Object.assign(session, { start: link.start });
      if (link.picture) await setPicture(link.picture);
      $("seed").value = link.seed;
      if (link.temperature !== null) setTemperature(link.temperature);
      if (back) setLive(own.live);
      if (!back || link.played.length) replay = { ...link, at: 0, text, back: back && ["Bringing your session back.", "Your session is back."] };
    } catch (problem) {
      if (!back) tell(problem.message);
    }
  }
  begin();
}

function replayed() {
  const end = hex(seen());
  const same = end === replay.end;
  const { back, temperature } = replay;
  replay = null;
  still = true;
  if (temperature !== null) setTemperature(temperature);
  badge(
    !same
      ? `✗ Another session: ${end}. The link is of another world, or of another kind of machine.`
      : back
        ? `${back[1]} Press a key to play on.`
        : `✓ The same session, bit for bit (${end}). Press a key to play on.`,
    same ? "good" : "bad",
  );
}

// The hash of all frames so far.
const seen = () => session.marks.at(-1) ?? EMPTY;
const linked = () => encoded(session.played, seen());

function encoded(played, mark) {
  const { seed, start, packed } = session;
  const picture = start === -1 ? packed : "";
  return encode({ seed, start, picture, played, temperature: Number($("temperature").value), end: hex(mark) });
}

function keepDream() {
  if (!world || world.recorder || !session.shown || session.played.length > LONGEST) return;
  keep(world.name, { hash: location.hash, text: replay?.text ?? linked(), live });
}

async function share() {
  if (session.played.length > LONGEST) return tell("This session is too long for a link.");
  const { length } = session.played;
  history.replaceState(null, "", `#${linked()}`);
  $("link").hidden = false;
  $("link").value = location.href;
  try {
    await navigator.clipboard.writeText(location.href);
    tell(`Copied: ${length} steps in ${location.href.length} characters.`);
  } catch {
    $("link").select();
    tell("Copy the link above."); // clipboards need https or this machine
  }
}

// ---- the page around -----------------------------------------------------------------------------------------------

// The page's own keys, less those that the world has a use for.
function shortcuts() {
  return [
    ["r", restart, "start again"],
    ["n", reseed, world.recorder ? "discard, another level" : "another seed"],
    ...(world.recorder ? [["k", keepTake, "keep"]] : []),
    ...(world.agent ? [["g", () => handOver(), "let the agent play"]] : []),
    ...(world.beside ? [["c", () => beside.show(), "real game beside"]] : []),
    ...(world.uncertainty ? [["h", () => unsure.show(), "uncertainty"]] : []),
    ["t", () => setLive(!live), "real time / step by step"],
    ...(world.recorder ? [] : [["u", undo, "undo"]]),
    ["m", slower, "slow motion"],
    ["f", fullScreen, "full screen"],
  ].filter(([key]) => !input.keys.has(key));
}

function keepTake() {
  if (!$("keep").disabled) wire.send({ type: "keep" });
  $("keep").disabled = true; // until the server has answered
}

function setLive(value) {
  live = value;
  still = still && live;
  $("live").setAttribute("aria-pressed", String(live));
  $("live").textContent = live ? `real time, ${Number(world.fps.toFixed(1))} fps` : "step by step";
}

function slower() {
  speed = SPEEDS[(SPEEDS.indexOf(speed) + 1) % SPEEDS.length];
  $("slow").textContent = `${speed}×`;
  $("slow").classList.toggle("on", speed < 1);
}

function reseed() {
  $("seed").value = Math.floor(Math.random() * 2 ** 31);
  restart();
}

function choose(start) {
  if (start < 0) return $("file").click();
  session.start = start;
  restart();
}

async function setPicture(picture) {
  Object.assign(session, { packed: await packed(picture), picture });
}

async function own(file) {
  if (!file || !world) return;
  try {
    await setPicture(await squeeze(file, world.frame));
  } catch {
    return tell("This is not a picture that the browser can read.");
  }
  session.start = -1;
  restart();
}

function record(format) {
  if (!session.shown) return;
  $(format).disabled = true;
  tell("Saving the last frames…");
  wire.send({ type: "record", format });
}

addEventListener("keydown", (event) => {
  if (!world || event.ctrlKey || event.metaKey || event.altKey || taken(event)) return;
  if (event.target === $("seed") && (event.key === "Enter" || input.keys.has(event.key) || event.key.length === 1)) {
    $("seed").blur(); // takes the seed as typed; the key is the world's again
    if (event.key === "Enter") return;
  }
  if (event.key === "Escape" && replay) {
    replay = null;
    badge("Yours again. Press a key to play on.");
  } else if (!input.keydown(event, live)) {
    const shortcut = event.repeat ? null : shortcuts().find(([key]) => key === event.key.toLowerCase());
    if (!shortcut) return;
    shortcut[1]();
  }
  event.preventDefault();
});
// A button that was clicked does not keep Enter and Space to itself; one that was reached by keyboard does.
addEventListener("click", (event) => event.detail && event.target.closest("button")?.blur());
releases(() => input);
addEventListener("pagehide", keepDream);
document.addEventListener("visibilitychange", () => {
  if (document.hidden) keepDream(); // the last that a phone may say
  if (document.hidden && live && world && !replay && !still) {
    still = true;
    badge("Asleep. Press a key to go on.");
  }
});
addEventListener("hashchange", () => world && location.hash.length > 1 && openLink());
new ResizeObserver(fit).observe($("screen"));

const CLICKS = {
  reset: restart, dice: reseed, discard: reseed, keep: keepTake, slow: slower, full: fullScreen, share,
  undo: () => world && undo(), hand: () => world && handOver(), live: () => world && setLive(!live),
  compare: () => beside.show(), watch: () => unsure.show(), gif: () => record("gif"), mp4: () => record("mp4"),
};
for (const [id, act] of Object.entries(CLICKS)) $(id).onclick = () => act();
$("full").hidden = !document.fullscreenEnabled;
onPicture($("file"), own);
$("seed").onchange = () => (tidySeed(), restart());
requestAnimationFrame(tick);
