// What the player wants: keys and buttons, held or tapped, become actions.
//
// A button sets one component of an action to a level; what no button sets is at rest. An action goes by its number: its
// components' levels, the last one counting fastest. Where an action has one component, the newest button is the action.

const GLYPHS = { ArrowLeft: "←", ArrowRight: "→", ArrowUp: "↑", ArrowDown: "↓", " ": "space", Enter: "⏎", Shift: "⇧" };
const MOST_TAPS = 2; // taps that wait for their frame; a fast typist must not play into the next second

const MOVES = /^(Arrow.*|Home|End|Page.*)$/; // keys that a slider answers to
const TYPED = /^(\d|Backspace|Delete|Home|End|Tab)$/; // keys that the seed's field answers to

export const glyph = (key) => GLYPHS[key] ?? (key.length === 1 ? key.toUpperCase() : key);
const WASD = { w: "ArrowUp", a: "ArrowLeft", s: "ArrowDown", d: "ArrowRight" }; // where the world has no other use for them
const same = (key) => (key.length === 1 ? key.toLowerCase() : key);

export class Input {
  // pressed(action): called at every press, before the action is taken.
  constructor(world, pad, pressed) {
    const { size, keys } = world.actions;
    this.actions = world.actions;
    this.keys = new Map(); // key -> button
    this.held = []; // [what holds it, button], the newest last
    this.taps = []; // {action, since}
    this.pressed = pressed;
    for (let button = 0; button < Math.min(9, Math.max(size, 1)); button++) this.keys.set(String(button + 1), button);
    if (size === 0) this.keys.set(" ", 0);
    keys.forEach((key, button) => key && this.keys.set(same(key), button));
    for (const [key, arrow] of Object.entries(WASD))
      if (this.keys.has(arrow) && !this.keys.has(key)) this.keys.set(key, this.keys.get(arrow));
    this.buttons = this.#draw(world, pad);
  }

  // The action to play now and when it was asked for, or null when nothing is. What is held goes on in real time only:
  // step by step, a finger rests on a key for several frames and means one.
  next(live) {
    if (this.taps.length) return this.taps.shift();
    return live && this.held.length ? { action: this.#number(), since: null } : null;
  }

  press(holder, button) {
    if (this.held.some(([other]) => other === holder)) return;
    this.held.push([holder, button]);
    this.#tap();
  }

  #tap() {
    const action = this.#number();
    if (this.taps.length < MOST_TAPS) this.taps.push({ action, since: performance.now() });
    this.pressed(action);
  }

  #number() {
    const { levels, buttons, rest } = this.actions;
    const set = [...rest];
    for (const [, button] of this.held) if (buttons[button]) set[buttons[button][0]] = buttons[button][1];
    return set.reduce((number, level, component) => number * levels[component] + level, 0);
  }

  // The buttons of a gamepad's letters: those that no arrow presses; of a world with arrows alone, the one for up.
  others() {
    const arrows = new Set(Object.values(WASD).map((key) => this.keys.get(key)));
    const others = [...new Set(this.keys.values())].filter((button) => !arrows.has(button)).sort((a, b) => a - b);
    return others.length ? others : [this.keys.get("ArrowUp")].filter((button) => button !== undefined);
  }

  release(holder) {
    this.held = this.held.filter(([other]) => other !== holder);
  }

  releaseAll() {
    this.held = [];
    this.taps = [];
  }

  // Take a keyboard event; true when it was an action's key. Step by step, a key that repeats is pressed again; in real
  // time it is held already, unless all were released while it stayed down (the window lost the focus and has it back).
  keydown(event, live) {
    const button = this.keys.get(same(event.key));
    if (button === undefined) return false;
    if (live || !event.repeat) this.press(event.code, button);
    else this.#tap();
    return true;
  }

  // Light the buttons of an action; -1: of none.
  show(action) {
    const { levels, buttons } = this.actions;
    const set = levelsOf(action, levels);
    const lit = (index) => !buttons[index] || set[buttons[index][0]] === buttons[index][1];
    this.buttons.forEach((button, index) => button.classList.toggle("on", action >= 0 && lit(index)));
  }

  #draw({ actions: { size, names, keys } }, pad) {
    const cross = document.createElement("div");
    const others = document.createElement("div");
    cross.className = "cross";
    others.className = "others";
    const buttons = Array.from({ length: Math.max(size, 1) }, (_, action) => {
      const key = keys[action] || (size === 0 ? " " : action < 9 ? String(action + 1) : "");
      const name = names[action] ?? (size === 0 ? "next frame" : `${action + 1}`);
      const arrow = key.startsWith("Arrow");
      const button = document.createElement("button");
      button.dataset.action = action;
      button.setAttribute("aria-label", name);
      const cap = document.createElement("b");
      cap.textContent = arrow ? glyph(key) : name;
      button.append(cap);
      if (arrow || (key && glyph(key) !== name)) {
        const small = document.createElement("small");
        small.textContent = arrow ? name : glyph(key);
        button.append(small);
      }
      if (arrow) button.classList.add(key);
      button.addEventListener("pointerdown", (event) => {
        event.preventDefault();
        button.setPointerCapture(event.pointerId);
        this.press(`pointer ${event.pointerId}`, action);
      });
      for (const end of ["pointerup", "pointercancel", "lostpointercapture"])
        button.addEventListener(end, (event) => this.release(`pointer ${event.pointerId}`));
      button.addEventListener("click", (event) => {
        if (event.detail) return; // after a pointer, which has pressed already
        this.press("click", action); // Enter, Space, a screen reader
        this.release("click");
      });
      button.addEventListener("contextmenu", (event) => event.preventDefault()); // a long touch is a long press
      (arrow ? cross : others).append(button);
      return button;
    });
    pad.replaceChildren(...[cross, others].filter((part) => part.childElementCount));
    return buttons;
  }
}

// Release keys where a page hears that they were let go, and where it never will; input(): the Input, if there is one.
export function releases(input) {
  // A Mac says nothing of the keys that are let go while Command is down.
  addEventListener("keyup", ({ key, code }) => (key === "Meta" ? input()?.releaseAll() : input()?.release(code)));
  addEventListener("blur", () => input()?.releaseAll());
  document.addEventListener("visibilitychange", () => input()?.releaseAll());
  // While a menu is open, or something is dragged, no page hears that a key is let go.
  for (const begins of ["contextmenu", "dragstart"])
    addEventListener(begins, (event) => event.defaultPrevented || input()?.releaseAll());
}

// The level of each component in the action of a number; counts: how many levels each has.
export function levelsOf(number, counts) {
  const found = [];
  for (let component = counts.length - 1, rest = number; component >= 0; component--) {
    found[component] = rest % counts[component];
    rest = Math.floor(rest / counts[component]);
  }
  return found;
}

// Whether a key is for the control that has the focus, and not for the world.
export function taken({ target, key }) {
  if (!target.matches) return false; // the document itself
  if (target.matches("button")) return key === "Enter" || key === " ";
  if (target.matches("input[type=range]")) return MOVES.test(key);
  return target.id === "seed" && TYPED.test(key);
}
