// Notices when nothing moves any more, whatever is pressed: a session can get stuck, and no frame shows it.

const SECONDS = { one: 6, several: 3 }; // of the same picture; one key may be a run against a wall

export class Stillness {
  constructor() {
    this.clear();
  }

  clear() {
    this.last = null;
    this.count = 0;
    this.tried = new Set();
  }

  // Take in a frame and the action that led to it; returns for how many frames nothing moved, 0 while that is no news.
  seen(bytes, action, { fps, idle, actions }) {
    const same = this.last?.length === bytes.length && this.last.every((value, i) => value === bytes[i]);
    if (!same) this.clear();
    else {
      this.count++;
      if (action !== idle || actions.size === 0) this.tried.add(action);
    }
    this.last = bytes;
    if (!this.tried.size) return 0;
    const patience = Math.max(12, fps * (this.tried.size > 1 ? SECONDS.several : SECONDS.one));
    return this.count >= patience ? this.count : 0;
  }
}
