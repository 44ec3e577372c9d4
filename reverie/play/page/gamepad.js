// A gamepad as keys: its cross and left stick are the arrows, its buttons the other actions in their order.

const CROSS = { 12: "ArrowUp", 13: "ArrowDown", 14: "ArrowLeft", 15: "ArrowRight" }; // of the standard layout
const REST = 0.5; // a stick that is pushed less than half is at rest
const BUTTONS = 12; // the ones before the cross

export class Gamepads {
  constructor() {
    this.down = new Map(); // what holds an action of the page's input -> button of that input
  }

  // Press and release what is held on any gamepad since the last call; called once for each picture of the screen.
  poll(input) {
    const now = new Map();
    for (const pad of navigator.getGamepads?.() ?? []) if (pad?.connected) this.#read(pad, input, now);
    for (const holder of this.down.keys()) if (!now.has(holder)) input.release(holder);
    for (const [holder, button] of now) if (!this.down.has(holder)) input.press(holder, button);
    this.down = now;
  }

  #read(pad, input, now) {
    const [x = 0, y = 0] = pad.axes;
    const stick = [x < -REST && "ArrowLeft", x > REST && "ArrowRight", y < -REST && "ArrowUp", y > REST && "ArrowDown"];
    const pressed = pad.buttons.flatMap((button, index) => (button.pressed ? [index] : []));
    for (const key of [...stick, ...pressed.map((index) => CROSS[index])]) {
      const button = key ? input.keys.get(key) : undefined;
      if (button !== undefined) now.set(`pad ${pad.index} ${key}`, button);
    }
    const others = input.others();
    for (const index of pressed) {
      if (index < BUTTONS && others.length) now.set(`pad ${pad.index} ${index}`, others[index % others.length]);
    }
  }
}
