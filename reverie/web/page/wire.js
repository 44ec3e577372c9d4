// The page's other end where there is no server: the same interface as the websocket, and the model in the page.

import { gif } from "./gif.js";
import { levelsOf } from "./input.js";
import { json, Model, part } from "./model.js";

const RECORDED = 600; // newest frames that a GIF can hold
const SIDE = 256; // of a GIF, in pixels

export class Wire {
  // on: as of the websocket; "note" also takes a sentence about the world.
  constructor(on) {
    this.on = on;
    this.id = 0;
    this.setup = json("setup");
    this.card = json("card");
    this.picture = null;
    this.checked = false;
    this.open();
  }

  get ready() {
    return !this.closed;
  }

  open() {
    this.closed = false;
    this.model = new Model();
    this.frames = []; // since the start
    this.running = Promise.all([this.#unpack(), this.model.start()]);
    this.running.catch((problem) => this.#fail(problem));
    queueMicrotask(() => this.on.world(this.card));
  }

  sendPicture(bytes) {
    this.picture = { frames: bytes, actions: this.setup.unlabelled, length: 1 };
  }

  // Returns the id that the answer will carry.
  send(command) {
    const id = ++this.id;
    const { seed, start, action, temperature } = command;
    if (command.type === "reset") Object.assign(this, { seed, step: 0, begun: id });
    if (command.type === "record") this.#record();
    else {
      const [step, begun] = [command.type === "step" ? ++this.step : 0, this.begun];
      const clip = start === -1 ? this.picture : start;
      const frame = step ? this.#step("player", action, step, this.seed, temperature) : this.#begin("player", clip);
      frame.then((shown) => this.#show({ ...shown, id, step, action: step ? action : -1, begun })).catch((problem) => this.#fail(problem));
    }
    return id;
  }

  async #show({ begun, ...answer }) {
    if (begun !== this.begun) return; // of the session before
    if (answer.step === 0) this.frames = [];
    if (this.frames.push(answer.bytes) > RECORDED) this.frames.shift();
    this.on.frame(answer);
    if (!this.checked) await this.#check();
  }

  async #record() {
    const bytes = await gif(this.frames, this.card.frame, this.card.fps, SIDE);
    this.on.gif({ bytes });
  }

  #fail(problem) {
    if (this.closed) return;
    this.closed = true;
    this.model.close();
    this.on.bye({ text: `This browser cannot run the world: ${problem.message}.` });
    this.on.closed();
  }

  // ---- the model ---------------------------------------------------------------------------------------------------

  async #unpack() {
    const frames = await part("frames");
    const size = this.card.frame.reduce((a, b) => a * b);
    let at = 0;
    const take = (count) => frames.subarray(at, (at += count * size));
    this.starts = this.setup.starts.map((start) => ({ ...start, frames: take(start.length) }));
    this.recorded = this.setup.check.runs.map(({ actions }) => Array.from({ length: actions.length + 1 }, () => take(1)));
  }

  // clip: the number of a start, or {frames, actions, length}.
  async #begin(player, clip) {
    await this.running;
    const { frames, actions, length } = typeof clip === "number" ? this.starts[clip] : clip;
    const { context, action } = this.setup;
    const size = frames.length / length;
    const padded = new Uint8Array(context * size); // the last frame again, as often as there is room
    for (let t = 0; t < context; t++) padded.set(frames.subarray(Math.min(t, length - 1) * size).subarray(0, size), t * size);
    return this.#run("begin", player, {
      frames: ["uint8", padded, [1, context, ...this.card.frame]],
      actions: [action.type, numbers(action.type, actions), [1, context, ...action.shape]],
      length: ["int32", Int32Array.of(length), []],
    });
  }

  async #step(player, number, step, seed, temperature) {
    const { type, shape, values } = this.setup.action;
    const levels = levelsOf(number, values.map((each) => each.length));
    const action = levels.map((level, component) => values[component][level]);
    return this.#run("step", player, {
      action: [type, numbers(type, action), shape],
      clock: ["uint32", Uint32Array.of(seed, step - 1), [2]],
      temperature: ["float32", Float32Array.of(temperature / 100), []],
    });
  }

  async #run(program, player, inputs) {
    if (program === "step") await (this.stepping ??= this.model.load("step"));
    const { bytes, unsure } = await this.model.ask({ kind: "run", program, player, inputs });
    this.stepping ??= this.model.load("step");
    return { bytes, unsure };
  }

  // Play what was played at export, beside the player, and say whether the frames are the same here.
  async #check() {
    this.checked = true;
    const { start, seed, runs } = this.setup.check;
    const grey = { frames: new Uint8Array(this.card.frame.reduce((a, b) => a * b)).fill(128), actions: this.setup.unlabelled, length: 1 };
    let [frames, equal, most] = [0, 0, 0];
    for (const [at, { temperature, actions }] of runs.entries()) {
      for (let step = 0; step <= actions.length; step++) {
        const { bytes } = step
          ? await this.#step("check", actions[step - 1], step, seed, temperature)
          : await this.#begin("check", start < 0 ? grey : start);
        const apart = bytes.reduce((most, value, i) => Math.max(most, Math.abs(value - this.recorded[at][step][i])), 0);
        [frames, equal, most] = [frames + 1, equal + (apart === 0), Math.max(most, apart)];
      }
    }
    const text =
      equal === frames
        ? `Checked: ${frames} of ${frames} frames are those recorded at export, bit for bit.`
        : `On this machine ${frames - equal} of ${frames} frames differ from those recorded at export, by ${most} of 255 at most. ` +
          "Links from other machines may lead elsewhere.";
    this.on.note({ text });
  }
}

const numbers = (type, values) => (type === "float32" ? Float32Array : Int32Array).from(values);
