// How unsure the model was of each frame: a curve under the picture, which can be hidden.

import { draw, KEPT } from "./curves.js";
import { $ } from "./panel.js";

const short = (number) => number.toPrecision(2);

export class Unsure {
  constructor() {
    this.shown = true;
  }

  greet({ uncertainty }) {
    this.unit = uncertainty;
    $("watch").parentElement.hidden = !this.unit;
    this.show(this.shown);
  }

  show(shown = !this.shown) {
    this.shown = shown;
    $("unsure").hidden = !this.unit || !shown;
    $("watch").setAttribute("aria-pressed", String(shown));
    $("watch").classList.toggle("on", shown);
  }

  clear() {
    this.past = [];
    this.total = 0;
    this.#draw();
  }

  // number: of a generated frame; NaN of one that was not.
  hear(number) {
    if (!this.unit || !Number.isFinite(number)) return;
    this.past = [...this.past, number].slice(-KEPT);
    this.total += number;
    this.#draw();
  }

  #draw() {
    const last = this.past.at(-1);
    $("now").textContent = last === undefined ? "–" : `${short(last)} ${this.unit}`;
    $("total").textContent = last === undefined ? "–" : short(this.total);
    draw($("uncertainty"), [[this.past, "#ff9f6b"]]);
  }
}
