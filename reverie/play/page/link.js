// A session as a link: seed, start and actions in the part after '#', which no server ever sees.
// The same world on the same kind of machine generates the same bits again; `end` is the check.

const MARK = 0; // in the list of runs: the number that follows is a temperature in hundredths; an action is its number + 1

// FNV-1a over the bytes of every frame since the start: eight hex digits that say "it was this session".
export const EMPTY = 0x811c9dc5;
export function hash(bytes, seen = EMPTY) {
  for (let i = 0; i < bytes.length; i++) seen = Math.imul(seen ^ bytes[i], 0x01000193);
  return seen >>> 0;
}
export const hex = (number) => number.toString(16).padStart(8, "0");

// A picture as `encode` wants it.
export const packed = async (picture) => base64(await through(new CompressionStream("deflate-raw"), picture));

// played: {action, temperature} of each step; temperature: that of the next.
export function encode({ seed, start, picture, played, temperature: next, end }) {
  const fields = { seed, start };
  if (picture) fields.picture = picture;
  const numbers = [];
  let temperature = null;
  for (let i = 0, run; i < played.length; i += run) {
    const { action, temperature: value } = played[i];
    for (run = 1; played[i + run]?.action === action && played[i + run].temperature === value; ) run++;
    if (value !== temperature) numbers.push(MARK, (temperature = value));
    numbers.push(action + 1, run);
  }
  if (next !== temperature) numbers.push(MARK, next);
  return new URLSearchParams({ ...fields, play: base64(varints(numbers)), end }).toString();
}

// Returns what `encode` was given, the picture as bytes and a temperature of null where none is said, or throws an Error with a sentence.
export async function decode(text, { actions, starts, size, longest }) {
  const fields = new URLSearchParams(text);
  const whole = (name, low, high) => {
    const value = Number(fields.get(name) ?? NaN);
    if (!Number.isInteger(value) || value < low || value > high) throw new Error(`This link has no proper ${name}.`);
    return value;
  };
  const seed = whole("seed", 0, 2 ** 31 - 1);
  const start = whole("start", -1, starts - 1);
  const end = fields.get("end") ?? "";
  if (!/^[0-9a-f]{8}$/.test(end)) throw new Error("This link has no proper end.");
  let picture = null;
  if (start === -1) {
    picture = await through(new DecompressionStream("deflate-raw"), bytes(fields.get("picture") ?? ""), size);
    if (picture.length !== size) throw new Error("The picture in this link is of another size than this world.");
  }
  const numbers = numbersOf(bytes(fields.get("play") ?? ""));
  const played = [];
  let temperature = null;
  for (let i = 0; i + 1 < numbers.length; i += 2) {
    const [what, count] = [numbers[i], numbers[i + 1]];
    if (what === MARK) temperature = count;
    else if (what > actions || played.length + count > longest) throw new Error("This link is of another world.");
    else for (let n = 0; n < count; n++) played.push({ action: what - 1, temperature: temperature ?? 100 });
    if (temperature < 0 || temperature > 200) throw new Error("This link has no proper temperature.");
  }
  return { seed, start, picture, played, temperature, end };
}

function varints(numbers) {
  const out = [];
  for (let number of numbers) {
    for (; number > 127; number = Math.floor(number / 128)) out.push((number % 128) | 128);
    out.push(number);
  }
  return Uint8Array.from(out);
}

function numbersOf(coded) {
  const out = [];
  let number = 0, place = 1;
  for (const byte of coded) {
    number += (byte & 127) * place;
    place *= 128;
    if (byte < 128) { out.push(number); number = 0; place = 1; }
  }
  return out;
}

function base64(data) {
  let text = "";
  for (const byte of data) text += String.fromCharCode(byte);
  return btoa(text).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

function bytes(text) {
  try {
    return Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), (letter) => letter.charCodeAt(0));
  } catch {
    throw new Error("This link is damaged.");
  }
}

// Pipe bytes through a (de)compressor; more than `most` bytes is an error, not a full memory.
async function through(stream, data, most = Infinity) {
  const reader = new Blob([data]).stream().pipeThrough(stream).getReader();
  const parts = [];
  let length = 0;
  try {
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      parts.push(part.value);
      if ((length += part.value.length) > most) throw new Error();
    }
  } catch {
    throw new Error("The picture in this link is damaged.");
  }
  const out = new Uint8Array(length);
  parts.reduce((at, part) => (out.set(part, at), at + part.length), 0);
  return out;
}
