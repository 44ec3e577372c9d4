// Frames as a looping GIF: 256 colours by median cut over all frames, pixels enlarged by whole numbers.

const COLOURS = 256;
const CODES = 4096; // of a GIF's compression (LZW)
const SLOWEST = 2; // hundredths of a second: browsers play anything quicker at 10 frames per second
const PAUSE = 8; // frames after which the page may draw

const bin = (r, g, b) => ((r >> 3) << 10) | ((g >> 3) << 5) | (b >> 3);

export async function gif(frames, [height, width, channels], fps, side) {
  const scale = Math.max(1, Math.floor(side / Math.max(height, width)));
  const [wide, high] = [width * scale, height * scale];
  const { colours, nearest } = palette(frames, channels);
  const out = [];
  const short = (number) => out.push(number & 255, number >> 8);
  out.push(...ascii("GIF89a"));
  short(wide), short(high);
  out.push(0xf7, 0, 0, ...colours);
  out.push(0x21, 0xff, 11, ...ascii("NETSCAPE2.0"), 3, 1, 0, 0, 0); // for ever
  const pixels = new Uint8Array(wide * high);
  for (const [at, frame] of frames.entries()) {
    if (at % PAUSE === 0) await new Promise((resolve) => setTimeout(resolve));
    const ends = [at, at + 1].map((count) => Math.round(count * Math.max(100 / fps, SLOWEST)));
    out.push(0x21, 0xf9, 4, 0);
    short(ends[1] - ends[0]);
    out.push(0, 0, 0x2c, 0, 0, 0, 0);
    short(wide), short(high);
    out.push(0);
    for (let y = 0, to = 0; y < high; y++)
      for (let x = 0; x < wide; x++, to++) {
        const from = (Math.floor(y / scale) * width + Math.floor(x / scale)) * channels;
        pixels[to] = nearest[bin(frame[from], frame[from + (channels > 1)], frame[from + 2 * (channels > 1)])];
      }
    compress(pixels, out);
  }
  out.push(0x3b);
  return Uint8Array.from(out);
}

const ascii = (text) => Array.from(text, (letter) => letter.charCodeAt(0));

// Returns the bytes of 256 colours, and the colour of each of 32 x 32 x 32 bins.
function palette(frames, channels) {
  const count = new Float64Array(1 << 15);
  const sums = [0, 1, 2].map(() => new Float64Array(1 << 15));
  for (const frame of frames)
    for (let at = 0; at < frame.length; at += channels) {
      const rgb = channels === 3 ? [frame[at], frame[at + 1], frame[at + 2]] : [frame[at], frame[at], frame[at]];
      const place = bin(...rgb);
      count[place]++;
      rgb.forEach((value, c) => (sums[c][place] += value));
    }
  const used = Array.from(count.keys()).filter((place) => count[place]);
  const boxes = split(used, count, (place, c) => sums[c][place] / count[place]);
  const colours = new Uint8Array(3 * COLOURS);
  const nearest = new Uint8Array(1 << 15);
  boxes.forEach((box, index) => {
    const total = box.reduce((all, place) => all + count[place], 0);
    sums.forEach((sum, c) => (colours[3 * index + c] = Math.round(box.reduce((all, place) => all + sum[place], 0) / total)));
    box.forEach((place) => (nearest[place] = index));
  });
  return { colours, nearest };
}

// Halve the box with most pixels along its widest side, until there are enough.
function split(used, count, value) {
  const boxes = [used];
  const pixels = (box) => box.reduce((all, place) => all + count[place], 0);
  while (boxes.length < COLOURS) {
    const open = boxes.filter((box) => box.length > 1);
    if (!open.length) break;
    const box = open.reduce((a, b) => (pixels(b) > pixels(a) ? b : a));
    const range = (c) => Math.max(...box.map((place) => value(place, c))) - Math.min(...box.map((place) => value(place, c)));
    const widest = [0, 1, 2].reduce((a, b) => (range(b) > range(a) ? b : a));
    box.sort((a, b) => value(a, widest) - value(b, widest));
    const half = pixels(box) / 2;
    let [at, seen] = [1, count[box[0]]];
    while (at < box.length - 1 && seen + count[box[at]] / 2 < half) seen += count[box[at++]];
    boxes.splice(boxes.indexOf(box), 1, box.slice(0, at), box.slice(at));
  }
  return boxes;
}

const table = new Int16Array(CODES * 256); // code and next pixel -> the code of both

// Append pixels as LZW codes of 8 bits and more, in blocks of 255 bytes.
function compress(pixels, out) {
  const [clear, end] = [256, 257];
  const block = [];
  let [held, bits, width, next] = [0, 0, 9, end + 1];
  const flush = () => out.push(block.length, ...block.splice(0));
  const emit = (code) => {
    held |= code << bits;
    for (bits += width; bits >= 8; bits -= 8, held >>>= 8) if (block.push(held & 255) === 255) flush();
  };
  out.push(8);
  table.fill(0);
  emit(clear);
  let code = pixels[0];
  for (let at = 1; at < pixels.length; at++) {
    const key = (code << 8) | pixels[at];
    if (table[key]) {
      code = table[key];
      continue;
    }
    emit(code);
    code = pixels[at];
    if (next === CODES) {
      emit(clear);
      table.fill(0);
      [width, next] = [9, end + 1];
    } else {
      if (next === 1 << width) width++;
      table[key] = next++;
    }
  }
  emit(code);
  emit(end);
  if (bits) block.push(held & 255);
  if (block.length) flush();
  out.push(0);
}
