// The agent of a world, if there is one: what it would press and what it expects, and whether it plays.

import { draw, KEPT } from "./curves.js";
import { $ } from "./panel.js";

const CURVES = [["value", "#8f7cff"], ["reward", "#ffd166"]];
const SAYS = [
  ["reward", "reward of this frame", (x) => x.toFixed(2)],
  ["value", "return from here on", (x) => x.toFixed(2)],
  ["goes_on", "the game goes on", (x) => `${Math.round(100 * x)} %`],
];

export class Agent {
  plays = false;
  advice = null; // for the newest frame, once it has come

  greet(world, { buttons }) {
    const there = Boolean(world.agent);
    this.buttons = buttons;
    $("agent").hidden = !there;
    $("pad").classList.toggle("watched", there);
    if (!there) this.hand(false);
  }

  clear() {
    this.advice = null;
    this.past = [];
  }

  hand(plays) {
    this.plays = plays;
    $("hand").setAttribute("aria-pressed", String(plays));
    $("hand").classList.toggle("on", plays);
  }

  // What the agent does after the newest frame, once; null while steps are under way, or until it has said so.
  next(underWay) {
    if (underWay || !this.advice) return null;
    const { action } = this.advice;
    this.advice = null;
    return { action };
  }

  hear(advice) {
    this.advice = advice;
    this.past = [...this.past, advice].slice(-KEPT);
    this.buttons.forEach((button, index) => button.style.setProperty("--share", advice.shares[index]));
    $("says").replaceChildren(...SAYS.filter(([name]) => name in advice).flatMap(([name, meaning, text]) => {
      const [term, number] = [document.createElement("dt"), document.createElement("dd")];
      const curve = CURVES.find(([curved]) => curved === name);
      term.style.borderColor = curve ? curve[1] : "transparent";
      term.textContent = meaning;
      number.textContent = text(advice[name]);
      return [term, number];
    }));
    const numbers = (name) => this.past.map((each) => each[name]).filter((number) => number !== undefined);
    draw($("curves"), CURVES.map(([name, colour]) => [numbers(name), colour]));
  }
}
