// Episodes of a store: a list by pages, and a player of one of them. It only reads.
import { pixels } from "./picture.js";

const SPEEDS = [1, 2, 4, 0.25, 0.5];
const COLOURS = ["#8f7cff", "#ffd166", "#6fdc9a", "#ff8a80", "#5cc8ff", "#f29cff", "#c5e063", "#ffa657", "#7ee0d0", "#9599ab"];
const at = (id) => document.getElementById(id);
const view = at("view");
let about, split, first = 0, rows = [], chosen = -1; // of the list; chosen: the number of an episode
let shown = null; // {row, found, chunks: Map of frame -> promise of frames, time, playing}
let speed = 0, last = 0, asked = 0;

async function get(path, query = {}) {
  const answer = await fetch(`${path}?${new URLSearchParams(query)}`);
  if (!answer.ok) throw new Error((await answer.json().catch(() => ({}))).error ?? "The server has stopped.");
  return answer;
}
const ask = async (path, query) => (await get(path, query)).json();
const frames = async (number, start) => new Uint8Array(await (await get("frames", { split, number, start })).arrayBuffer());
const say = (error) => { at("message").textContent = error?.message ?? ""; };
const make = (tag, text = "", fields = {}) => Object.assign(document.createElement(tag), { textContent: text, ...fields });
const size = () => about.frame.reduce((one, other) => one * other);
const perAnswer = () => Math.max(1, Math.floor(4194304 / size())); // as the server's SENT

function draw(canvas, bytes) {
  const [height, width] = about.frame;
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d");
  context.putImageData(pixels(bytes, about.frame, context.createImageData(width, height)), 0, 0);
}

function fit() { // the picture as large as its place, by whole numbers where it grows
  const [height, width] = about.frame, place = at("screen");
  const room = Math.min(place.clientWidth / width, place.clientHeight / height);
  const scale = room >= 1 ? Math.floor(room) : room;
  Object.assign(view.style, { width: `${width * scale}px`, height: `${height * scale}px` });
}

async function list(name, from, want) { // want: the number of the episode to choose, or "last" of the page
  split = name;
  first = from;
  const found = await ask("rows", { split, first });
  if (name !== split || from !== first) return; // another page was asked for meanwhile
  rows = found;
  const total = about.splits[split].episodes;
  at("page").textContent = `${first + 1}–${first + rows.length} of ${total}`;
  at("back").disabled = first === 0;
  at("next").disabled = first + rows.length >= total;
  for (const button of at("splits").children) button.classList.toggle("on", button.value === split);
  at("episodes").replaceChildren(...rows.map(item));
  await choose(want === "last" ? rows.at(-1).number : want ?? rows[0].number);
  for (const row of rows) await details(row, name, from);
}

function item(row) {
  const text = make("div"), picture = make("canvas", "", { width: 1, height: 1 });
  text.append(make("b", row.task || row.source || `episode ${row.number}`), make("span", `${row.number}: ${row.length} frames`));
  const line = make("li", "", { id: `episode-${row.number}`, onclick: () => show(row.number) });
  line.setAttribute("role", "option");
  line.append(picture, text, make("span", "", { className: "return" }));
  return line;
}

async function details(row, name, from) { // its first frame, return and actions, one episode after another
  if (name !== split || from !== first) return;
  const line = at(`episode-${row.number}`);
  try {
    const [found, picture] = await Promise.all([ask("episode", { split: name, number: row.number }), thumbnail(row.number)]);
    if (name !== split || from !== first) return;
    draw(line.children[0], picture);
    const most = counted(found).slice(0, 2).map(([index, share]) => `${found.names[index] || "–"} ${Math.round(100 * share)}%`);
    line.querySelector("div span").textContent = `${row.number}: ${row.length} frames; ${most.join(", ")}`;
    line.children[2].textContent = `return ${found.return}`;
  } catch (error) {
    line.querySelector("div span").textContent = error.message;
  }
}

const thumbnail = async (number) => (await frames(number, 0)).subarray(0, size());

function counted(found) { // [action, share of the frames], the most frequent first; the first frame has none
  const counts = new Map();
  for (const index of found.actions.slice(1)) counts.set(index, (counts.get(index) ?? 0) + 1);
  return [...counts].map(([index, count]) => [index, count / Math.max(1, found.actions.length - 1)]).sort((a, b) => b[1] - a[1]);
}

async function choose(number) {
  chosen = number;
  const mine = ++asked, row = rows.find((one) => one.number === number);
  for (const line of at("episodes").children) line.setAttribute("aria-selected", line.id === `episode-${number}`);
  at("episodes").setAttribute("aria-activedescendant", `episode-${number}`);
  at(`episode-${number}`).scrollIntoView({ block: "nearest" });
  history.replaceState(null, "", `#${split}/${number}`);
  const playing = shown?.playing ?? false;
  const found = await ask("episode", { split, number });
  if (mine !== asked) return;
  say(null);
  shown = { row, found, chunks: new Map(), time: 0, playing };
  at("time").max = row.length - 1;
  const parts = [row.source, row.task, `${row.length} frames at ${about.fps} per second`, `return ${found.return}`];
  if (found.ends.length) parts.push(`ends at frame ${found.ends.join(", ")}`);
  if (!found.whole) parts.push(`actions and rewards of the first ${found.actions.length} frames`);
  at("about").textContent = parts.filter(Boolean).join(" · ");
  const shares = counted(found).slice(0, 24).map(([index, share]) => {
    const pair = make("div"), name = make("dt", found.names[index] || "–");
    name.style.borderColor = COLOURS[index % COLOURS.length];
    pair.append(name, make("dd", `${Math.round(100 * share)}%`));
    return pair;
  });
  at("says").replaceChildren(...shares);
  await seek(0);
}

function show(number) { // a list may lie far below the picture
  choose(number).catch(say);
  at("screen").scrollIntoView({ block: "nearest" });
}

async function chunk(start) {
  const mine = shown;
  if (!mine.chunks.has(start)) {
    mine.chunks.set(start, frames(mine.row.number, start));
    if (mine.chunks.size > 6) mine.chunks.delete(mine.chunks.keys().next().value);
  }
  return mine.chunks.get(start);
}

async function seek(time) {
  const mine = shown, count = perAnswer(), start = time - (time % count);
  mine.time = time;
  const bytes = await chunk(start);
  if (mine !== shown || mine.time !== time) return;
  const next = start + count;
  if (next < mine.row.length && time - start > count / 2) chunk(next).catch(() => mine.chunks.delete(next));
  draw(view, bytes.subarray((time - start) * size(), (time - start + 1) * size()));
  const { found, row } = mine, name = found.names[found.actions[time]];
  at("action").replaceChildren(time === 0 ? "first frame" : name === undefined ? "" : name || "–");
  if (found.rewards[time]) at("action").append(make("small", `reward ${found.rewards[time]}`));
  if (found.ends.includes(time)) at("action").append(make("small", "the end"));
  at("time").value = time;
  at("time").setAttribute("aria-valuetext", `frame ${time}, ${at("action").textContent}`);
  at("frame").textContent = `${time} of ${row.length - 1}`;
  at("play").classList.toggle("on", mine.playing);
  at("play").setAttribute("aria-pressed", mine.playing);
  chart();
}

function chart() { // above, rewards as bars; below, the colour of each action; a line at this frame
  const canvas = at("curves"), context = canvas.getContext("2d"), { found, row, time } = shown;
  const [width, height] = [canvas.width, canvas.height], strip = 28, step = width / row.length;
  context.clearRect(0, 0, width, height);
  const most = Math.max(1e-9, ...found.rewards.map(Math.abs)), middle = (height - strip) / 2;
  context.fillStyle = "#2a2d3a";
  context.fillRect(0, middle, width, 1);
  found.rewards.forEach((reward, index) => {
    context.fillStyle = COLOURS[found.actions[index] % COLOURS.length];
    if (index) context.fillRect(index * step, height - strip, Math.ceil(step), strip);
    context.fillStyle = reward > 0 ? "#6fdc9a" : "#ff8a80";
    if (reward) context.fillRect(index * step, middle, Math.max(2, step), (-reward / most) * (middle - 4));
  });
  context.fillStyle = "#e8e9f0";
  for (const end of found.ends) context.fillRect(end * step, 0, 3, height - strip);
  context.fillStyle = "#ffffff";
  context.fillRect((time + 0.5) * step - 1, 0, 3, height);
}

function play(now) {
  requestAnimationFrame(play);
  if (!shown?.playing || now - last < 1000 / (about.fps * SPEEDS[speed])) return;
  last = now;
  if (shown.time + 1 < shown.row.length) seek(shown.time + 1).catch(stop);
  else stop();
}
function stop(error) {
  shown.playing = false;
  if (error) say(error);
  at("play").classList.remove("on");
  at("play").setAttribute("aria-pressed", false);
}
function toggle() {
  if (!shown) return;
  shown.playing = !shown.playing;
  seek(shown.playing && shown.time + 1 >= shown.row.length ? 0 : shown.time).catch(stop);
}
function step(by) {
  if (!shown) return;
  shown.playing = false;
  seek(Math.min(Math.max(shown.time + by, 0), shown.row.length - 1)).catch(stop);
}
function turn(by, want) {
  const to = first + by * about.rows;
  if (to >= 0 && to < about.splits[split].episodes) list(split, to, want).catch(say);
}
function move(by) {
  const index = rows.findIndex((row) => row.number === chosen) + by;
  if (index < 0) turn(-1, "last");
  else if (index >= rows.length) turn(1);
  else choose(rows[index].number).catch(say);
}
function faster() {
  speed = (speed + 1) % SPEEDS.length;
  at("speed").textContent = `${SPEEDS[speed]}×`;
}

const KEYS = {
  " ": toggle, ArrowLeft: () => step(-1), ArrowRight: () => step(1), ArrowUp: () => move(-1), ArrowDown: () => move(1),
  PageUp: () => turn(-1), PageDown: () => turn(1), s: faster, S: faster,
};
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in KEYS)) return;
  if (event.key === " " && event.target.tagName === "BUTTON") return; // the button itself is pressed
  event.preventDefault();
  KEYS[event.key]();
});
at("play").onclick = toggle;
at("speed").onclick = faster;
at("time").oninput = () => { if (shown) { shown.playing = false; seek(Number(at("time").value)).catch(stop); } };
at("curves").onclick = (event) => step(Math.floor((event.offsetX / at("curves").clientWidth) * shown.row.length) - shown.time);
at("back").onclick = () => turn(-1);
at("next").onclick = () => turn(1);

async function begin() {
  about = await ask("about");
  document.title = `${about.name}: episodes`;
  at("name").textContent = about.name;
  const [height, width] = about.frame;
  at("facts").textContent = `${about.source}, ${height} × ${width}, ${about.packing}`;
  at("noted").hidden = !about.notes.length;
  at("notes").append(...about.notes.map((note) => make("li", note)));
  at("splits").append(...Object.entries(about.splits).map(([name, part]) => {
    const button = make("button", `${name} `, { value: name, onclick: () => list(name, 0).catch(say) });
    button.append(make("small", `${part.episodes} episodes, ${part.frames} frames`));
    return button;
  }));
  new ResizeObserver(fit).observe(at("screen"));
  requestAnimationFrame(play);
  const [name, number] = decodeURIComponent(location.hash.slice(1)).split("/"), part = about.splits[name];
  if (part && Number(number) < part.episodes) await list(name, number - (number % about.rows), Number(number));
  else await list(Object.keys(about.splits)[0], 0);
}
begin().catch(say);
