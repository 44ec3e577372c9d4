// What stands around the picture: sentences, starts, the list of keys, files to save.

import { glyph } from "./input.js";

export const $ = (id) => document.getElementById(id);

// A sentence under the buttons.
export function tell(text) {
  $("message").textContent = text;
  for (const format of ["gif", "mp4"]) $(format).disabled = false;
}

// A sentence over the picture; who cannot see it hears it.
export function badge(text, kind = "") {
  Object.assign($("badge"), { textContent: text, className: kind, hidden: !text });
  $("status").textContent = text;
}

// A sentence instead of the picture.
export function veil(text, button, click) {
  $("veil").hidden = false;
  $("veil-text").textContent = $("status").textContent = text;
  Object.assign($("veil-button"), { textContent: button, hidden: !button, onclick: click });
}

// A seed as typed becomes one that there is.
export function tidySeed() {
  $("seed").value = Math.min(2 ** 31 - 1, Math.max(0, Math.floor(Number($("seed").value)) || 0));
}

export function setTemperature(hundredths) {
  $("temperature").value = hundredths;
  $("temperature-shown").textContent = ($("temperature").value / 100).toFixed(2);
}
$("temperature").oninput = () => setTemperature($("temperature").value);
$("temperature").onpointerup = () => $("temperature").blur(); // arrows are the world's again; by keyboard they are its own

// Fill the screen with the picture and its buttons, or go back.
export function fullScreen() {
  if (document.fullscreenElement) document.exitFullscreen();
  else $("stage").requestFullscreen().catch(() => tell("This browser does not allow full screen here."));
}

// Whole device pixels per pixel of the world, as many as fit: every pixel is the same size and sharp.
export function fit() {
  const view = $("view");
  const { clientWidth, clientHeight } = $("screen");
  const ratio = window.devicePixelRatio || 1;
  const shown = $("beside").hidden ? 1 : 2;
  const times = Math.min(((clientWidth / shown - 16 * (shown - 1)) * ratio) / view.width, (clientHeight * ratio) / view.height);
  const size = (times >= 1 ? Math.floor(times) : times) / ratio;
  for (const canvas of [view, $("real")]) Object.assign(canvas.style, { width: `${view.width * size}px`, height: `${view.height * size}px` });
}

// pictures: an address each; choose(start): called with the number of a start; -1: the player's own picture.
export function drawStarts(pictures, choose) {
  const tiles = pictures.map((src, start) => {
    const tile = document.createElement("button");
    const picture = new Image();
    Object.assign(picture, { src, alt: `start ${start + 1}`, draggable: false });
    tile.append(picture);
    return tile;
  });
  const own = document.createElement("button");
  Object.assign(own, { textContent: "+", title: "a picture of yours: choose, drop or paste one" });
  own.setAttribute("aria-label", "a picture of yours");
  [...tiles, own].forEach((tile, at) => {
    tile.dataset.start = at < pictures.length ? at : -1;
    tile.onclick = () => choose(at < pictures.length ? at : -1);
  });
  $("starts").replaceChildren(...tiles, own);
}

export function markStart(start) {
  document.querySelectorAll("#starts button").forEach((tile) =>
    tile.setAttribute("aria-pressed", String(Number(tile.dataset.start) === start)));
}

export function drawKeys({ actions }, input, shortcuts) {
  const { names, size } = actions;
  const rows = new Map();
  for (const [key, action] of input.keys) {
    if (/^[1-9]$/.test(key) && actions.keys[action]) continue; // digits always work; shown where there is nothing better
    const name = names[action] ?? (size ? `action ${action + 1}` : "next frame");
    rows.set(name, [glyph(key), ...(rows.get(name) ?? [])]);
  }
  const list = [...rows].map(([name, keys]) => [keys.join(" "), name]);
  for (const [key, , text] of shortcuts) list.push([key.toUpperCase(), text]);
  $("keys").replaceChildren(...list.flatMap(([keys, text]) => {
    const [left, right] = [document.createElement("dt"), document.createElement("dd")];
    left.append(...keys.split(" ").map((key) => Object.assign(document.createElement("kbd"), { textContent: key })));
    right.textContent = text;
    return [left, right];
  }));
}

export function save(bytes, name, ending, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([bytes], { type }));
  link.download = `${name.replace(/[^\w-]+/g, "-")}.${ending}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  tell(`Saved ${link.download} (${Math.ceil(bytes.length / 1024)} KiB).`);
}

// Why there is no connection; met: there was one before.
export function outOfReach(met) {
  if (met || /^(localhost|127\..*|\[::1\])$/.test(location.hostname)) return "The world is out of reach. Is it still running?";
  return `The world does not answer to this page. Behind a proxy or tunnel, start it with --allow-host ${location.hostname}.`;
}
