// The player: a clock at the world's own pace, a canvas, and the controls around it.

import { EMPTY, decode, encode, hash, hex } from "./link.js";
import { Input, glyph } from "./input.js";
import { Meter } from "./meter.js";
import { squeeze } from "./picture.js";
import { Wire } from "./wire.js";

const IN_FLIGHT = 2; // steps asked for and not yet seen: enough to hide a network, too few to feel
const ASLEEP = 180_000; // ms without a key until real time stops, so that a forgotten tab does not dream all night
const LONGEST = 20_000; // steps of a dream that a link can hold

const $ = (id) => document.getElementById(id);
const view = $("view");
const paint = view.getContext("2d");
const meter = new Meter($("fps"), $("p50"), $("p95"));

let world = null; // the server's greeting
let input = null;
let image = null; // ImageData of one frame
let met = false; // greeted once: what the player chose since then is kept through reconnections
let goodbye = null; // why the server closed, when it said
const dream = { seed: 0, start: 0, picture: null, played: [], seen: EMPTY, from: 0, shown: false };
const sent = new Map(); // id of a step not yet answered -> {action, temperature, since}
let replay = null; // {played, end, at}
let live = true; // real time, or step by step
let still = true; // real time waits for a first key
let due = 0;
let touched = 0; // when a key was last pressed

const wire = new Wire({
  world(greeting) {
    world = greeting;
    const [height, width] = world.frame;
    Object.assign(view, { width, height });
    image = paint.createImageData(width, height);
    document.title = `${world.name} · Reverie`;
    $("name").textContent = world.name;
    $("note").textContent = world.notes.join(" ");
    if (!met) $("seed").value = world.seed;
    if (!met) $("temperature").value = world.temperature;
    showTemperature();
    met = true;
    input = new Input(world, $("pad"), pressed);
    dream.start = world.starts ? Math.min(Math.max(dream.start, 0), world.starts - 1) : -1;
    drawStarts();
    drawKeys();
    setLive(live);
    fit();
    if (!dream.picture && world.starts === 0) dream.picture = new Uint8Array(world.frame.reduce((a, b) => a * b)).fill(128);
    else if (dream.start >= 0) dream.picture = null;
    openLink();
  },
  frame({ step, action, id, bytes }) {
    if (id < dream.from) return; // of the dream before
    const asked = sent.get(id);
    for (const other of sent.keys()) if (other <= id) sent.delete(other); // the server merges steps that come too fast
    if (asked) dream.played.push({ action, temperature: asked.temperature });
    dream.seen = hash(bytes, dream.seen);
    draw(bytes);
    $("step").textContent = step;
    meter.drawn(asked?.since);
    input.show(step ? action : -1);
    if (!dream.shown) begun();
    if (replay && step === replay.played.length) replayed();
  },
  gif: (message) => save(message.bytes, "gif", "image/gif"),
  mp4: (message) => save(message.bytes, "mp4", "video/mp4"),
  busy: ({ text }) => (goodbye = { text, again: 5 }),
  bye: ({ text }) => (goodbye = { text }),
  error: ({ text }) => tell(text),
  closed() {
    const { text, again } = goodbye ?? { text: "The world is out of reach. Is it still running?", again: 2 };
    goodbye = null;
    world = null;
    dream.shown = false;
    veil(text, again ? "" : "Come back", reconnect);
    if (again) setTimeout(reconnect, again * 1000);
  },
});

function reconnect() {
  if (wire.socket.readyState === WebSocket.CLOSED) wire.open();
}

// ---- a dream -------------------------------------------------------------------------------------------------------

function begin() {
  if (!world) return;
  sent.clear();
  input.releaseAll();
  Object.assign(dream, { played: [], seen: EMPTY, shown: false, seed: Number($("seed").value) });
  if (dream.start === -1) wire.sendPicture(dream.picture);
  dream.from = wire.send({ type: "reset", seed: dream.seed, start: dream.start });
  document.querySelectorAll("#starts button").forEach((tile) =>
    tile.setAttribute("aria-pressed", String(Number(tile.dataset.start) === dream.start)));
  still = true;
}

function begun() {
  dream.shown = true;
  $("veil").hidden = true;
  if (replay) return replay.played.length || replayed();
  if (world.actions.size === 0) still = !live;
  badge(still && live ? "Press a key, and the dream begins." : "");
}

function restart() {
  replay = null;
  if (location.hash) history.replaceState(null, "", location.pathname);
  $("link").hidden = true;
  begin();
}

function pressed() {
  touched = performance.now();
  if (replay) return;
  if (still) badge("");
  still = false;
  due = Math.min(due, touched); // a key is answered at once; the pace is kept over what follows
  advance(touched);
}

function tick() {
  requestAnimationFrame(tick);
  advance(performance.now());
}

function advance(now) {
  if (!world || !wire.ready || !dream.shown || now < due || sent.size >= IN_FLIGHT) return;
  if (live && !still && !replay && now - touched > ASLEEP) {
    still = true;
    badge("Asleep. Press a key to go on.");
  }
  const wanted = replay ? replay.played[replay.at] : input.next(live) ?? (live && !still ? { action: world.idle } : null);
  if (!wanted) return;
  if (replay) {
    replay.at++;
    badge(`Replaying ${replay.at} of ${replay.played.length}. Esc: stop here and play on.`);
  }
  const period = 1000 / world.fps;
  due = now - due > period ? now + period : due + period;
  const step = { action: wanted.action, temperature: wanted.temperature ?? Number($("temperature").value) };
  sent.set(wire.send({ type: "step", ...step }), { ...step, since: wanted.since });
}

function draw(bytes) {
  const channels = world.frame[2];
  for (let i = 0, at = 0; at < bytes.length; i += 4, at += channels) {
    image.data[i] = bytes[at];
    image.data[i + 1] = bytes[channels === 3 ? at + 1 : at];
    image.data[i + 2] = bytes[channels === 3 ? at + 2 : at];
    image.data[i + 3] = 255;
  }
  paint.putImageData(image, 0, 0);
}

// ---- links ---------------------------------------------------------------------------------------------------------

async function openLink() {
  replay = null;
  if (location.hash.length > 1) {
    try {
      const size = world.frame.reduce((a, b) => a * b);
      const { count } = world.actions;
      const link = await decode(location.hash.slice(1), { actions: count, starts: world.starts, size, longest: LONGEST });
      Object.assign(dream, { start: link.start, picture: link.picture });
      $("seed").value = link.seed;
      replay = { played: link.played, end: link.end, at: 0 };
    } catch (problem) {
      tell(problem.message);
    }
  }
  begin();
}

function replayed() {
  const same = hex(dream.seen) === replay.end;
  replay = null;
  still = true;
  badge(
    same
      ? `✓ The same dream, bit for bit (${hex(dream.seen)}). Press a key to play on.`
      : `✗ Another dream: ${hex(dream.seen)}. The link is of another world, or of another kind of machine.`,
    same ? "good" : "bad",
  );
}

async function share() {
  if (dream.played.length > LONGEST) return tell("This dream is too long for a link.");
  const { seed, start, picture, played, seen } = dream;
  const link = await encode({ seed, start, picture: start === -1 ? picture : null, played, end: hex(seen) });
  history.replaceState(null, "", `#${link}`);
  $("link").hidden = false;
  $("link").value = location.href;
  $("link").select();
  try {
    await navigator.clipboard.writeText(location.href);
    tell(`Copied: ${played.length} steps in ${location.href.length} characters.`);
  } catch {
    tell("Copy the link above."); // clipboards need https or this machine
  }
}

// ---- the page around -----------------------------------------------------------------------------------------------

function drawStarts() {
  const tiles = Array.from({ length: world.starts }, (_, start) => {
    const tile = document.createElement("button");
    const picture = new Image();
    Object.assign(picture, { src: `start-${start}.png`, alt: `start ${start + 1}`, draggable: false });
    tile.append(picture);
    tile.onclick = () => { dream.start = start; restart(); };
    tile.dataset.start = start;
    return tile;
  });
  const own = document.createElement("button");
  Object.assign(own, { textContent: "+", title: "a picture of yours: choose, drop or paste one" });
  own.setAttribute("aria-label", "a picture of yours");
  own.dataset.start = -1;
  own.onclick = () => $("file").click();
  $("starts").replaceChildren(...tiles, own);
}

function drawKeys() {
  const { names, size } = world.actions;
  const rows = new Map();
  for (const [key, action] of input.keys) {
    if (/^[1-9]$/.test(key) && world.actions.keys[action]) continue; // digits always work; shown where there is nothing better
    const name = names[action] ?? (size ? `action ${action + 1}` : "dream on");
    rows.set(name, [glyph(key), ...(rows.get(name) ?? [])]);
  }
  const list = [...rows].map(([name, keys]) => [keys.join(" "), name]);
  for (const [key, , text] of shortcuts()) list.push([key.toUpperCase(), text]);
  $("keys").replaceChildren(...list.flatMap(([keys, text]) => {
    const [left, right] = [document.createElement("dt"), document.createElement("dd")];
    left.append(...keys.split(" ").map((key) => Object.assign(document.createElement("kbd"), { textContent: key })));
    right.textContent = text;
    return [left, right];
  }));
}

// The page's own keys, less those that the world has a use for.
function shortcuts() {
  return [
    ["r", restart, "start again"],
    ["n", reseed, "another seed"],
    ["t", () => setLive(!live), "real time / step by step"],
  ].filter(([key]) => !input.keys.has(key));
}

function setLive(value) {
  live = value;
  still = still && live;
  $("live").setAttribute("aria-pressed", String(live));
  $("live").textContent = live ? `real time, ${Number(world.fps.toFixed(1))} fps` : "step by step";
}

function reseed() {
  $("seed").value = Math.floor(Math.random() * 2 ** 31);
  restart();
}

async function own(file) {
  if (!file || !world) return;
  try {
    dream.picture = await squeeze(file, world.frame);
  } catch {
    return tell("This is no picture that the browser can read.");
  }
  dream.start = -1;
  restart();
}

function save(bytes, ending, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([bytes], { type }));
  link.download = `${world.name.replace(/[^\w-]+/g, "-")}-${dream.seed}.${ending}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  $(ending).disabled = false;
  tell(`Saved ${link.download} (${Math.ceil(bytes.length / 1024)} KiB).`);
}

function record(format) {
  if (!dream.shown) return;
  $(format).disabled = true;
  tell("Saving the last frames…");
  wire.send({ type: "record", format });
}

function tell(text) {
  $("told").textContent = text;
  for (const format of ["gif", "mp4"]) $(format).disabled = false;
}

function badge(text, kind = "") {
  Object.assign($("badge"), { textContent: text, className: kind, hidden: !text });
}

function veil(text, button, click) {
  $("veil").hidden = false;
  $("veil-text").textContent = text;
  Object.assign($("veil-button"), { textContent: button, hidden: !button, onclick: click });
}

// Whole device pixels per pixel of the world, as many as fit: every pixel is the same size and sharp.
function fit() {
  const { clientWidth, clientHeight } = $("screen");
  const ratio = window.devicePixelRatio || 1;
  const times = Math.min((clientWidth * ratio) / view.width, (clientHeight * ratio) / view.height);
  const size = (times >= 1 ? Math.floor(times) : times) / ratio;
  Object.assign(view.style, { width: `${view.width * size}px`, height: `${view.height * size}px` });
}

addEventListener("keydown", (event) => {
  if (!world || event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input:not([type=range])")) return;
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
addEventListener("keyup", (event) => input?.release(event.code));
addEventListener("blur", () => input?.releaseAll());
document.addEventListener("visibilitychange", () => {
  input?.releaseAll();
  if (document.hidden && live && world && !replay && !still) {
    still = true;
    badge("Asleep. Press a key to go on.");
  }
});
addEventListener("hashchange", () => world && location.hash.length > 1 && openLink());
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => { event.preventDefault(); own(event.dataTransfer.files[0]); });
addEventListener("paste", (event) => own(event.clipboardData.files[0]));
new ResizeObserver(fit).observe($("screen"));

$("reset").onclick = restart;
$("dice").onclick = reseed;
$("live").onclick = () => world && setLive(!live);
$("gif").onclick = () => record("gif");
$("mp4").onclick = () => record("mp4");
$("share").onclick = share;
$("file").onchange = () => { own($("file").files[0]); $("file").value = ""; };
$("seed").onchange = () => {
  $("seed").value = Math.min(2 ** 31 - 1, Math.max(0, Math.floor(Number($("seed").value)) || 0));
  restart();
};
function showTemperature() {
  $("temperature-shown").textContent = ($("temperature").value / 100).toFixed(2);
}
$("temperature").oninput = showTemperature;
$("temperature").onchange = () => $("temperature").blur(); // so that arrows are the world's again
requestAnimationFrame(tick);
