// How quick it feels: frames drawn per second, and the time from a key to its picture.

const WINDOW = 2000; // ms over which frames are counted
const KEPT = 200; // keys whose latency is remembered

export class Meter {
  constructor(fps, p50, p95) {
    this.places = { fps, p50, p95 };
    this.frames = [];
    this.waits = [];
    setInterval(() => this.#show(), 500);
  }

  // A frame is in the canvas; `since` is when the key was pressed that asked for it, if one was.
  drawn(since) {
    const now = performance.now();
    this.frames.push(now);
    if (since == null) return;
    this.waits.push(now - since);
    if (this.waits.length > KEPT) this.waits.shift();
  }

  #show() {
    const now = performance.now();
    this.frames = this.frames.filter((time) => now - time < WINDOW);
    const sorted = this.waits.toSorted((a, b) => a - b);
    const at = (share) => sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))]?.toFixed(0) ?? "–";
    const [first, last] = [this.frames[0], this.frames.at(-1)];
    this.places.fps.textContent = last > first ? (((this.frames.length - 1) / (last - first)) * 1000).toFixed(1) : "–";
    this.places.p50.textContent = at(0.5);
    this.places.p95.textContent = at(0.95);
  }
}
