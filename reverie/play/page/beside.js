// The real game beside its world, under the same keys: where they part shows what the world has not learned.

import { $, fit } from "./panel.js";
import { pixels } from "./picture.js";

const PARTED = 25; // dB between both pictures: below, something that matters has parted

export class Beside {
  greet(world) {
    this.there = Boolean(world.beside);
    this.frame = world.frame;
    [$("real").height, $("real").width] = world.frame;
    $("compare").parentElement.hidden = !this.there;
    if (!this.there) this.show(false);
  }

  show(shown = $("beside").hidden) {
    $("beside").hidden = !shown;
    $("compare").setAttribute("aria-pressed", String(shown));
    $("compare").classList.toggle("on", shown);
    $("screen").classList.toggle("two", shown);
    fit();
  }

  // The world's newest frame; the real one follows, while the game lasts.
  imagined(bytes) {
    if (this.waits) $("apart").textContent = "the real game, left, does not go on";
    this.waits = this.there;
    this.bytes = bytes;
  }

  real(bytes) {
    this.waits = false;
    const paint = $("real").getContext("2d");
    paint.putImageData(pixels(bytes, this.frame, paint.createImageData($("real").width, $("real").height)), 0, 0);
    const error = bytes.reduce((sum, value, at) => sum + (value - this.bytes[at]) ** 2, 0) / bytes.length;
    const psnr = 10 * Math.log10(255 ** 2 / error);
    $("apart").textContent = `the real game is left · ${error ? `PSNR ${psnr.toFixed(1)} dB` : "every pixel is the same"}`;
    $("apart").classList.toggle("parted", psnr < PARTED);
  }
}
