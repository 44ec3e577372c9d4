// Recording a real game: what the page shows of the take that is being played.

import { $ } from "./panel.js";

// Show what belongs to a recording, and hide what only a world model has.
export function showRecorder(on) {
  $("take").hidden = !on;
  $("heading").textContent = on ? "Game" : "Dream";
  for (const id of ["initial", "temperature-row", "share", "undo"]) $(id).hidden = on;
}

// A take as the server says it stands.
export function showTake({ frames, reward, kept }) {
  const takes = kept === 1 ? "1 take" : `${kept} takes`;
  $("taken").textContent = `${frames} frame${frames === 1 ? "" : "s"}, reward ${reward}. ${takes} kept.`;
  $("keep").disabled = frames < 2;
}
