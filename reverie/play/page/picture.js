// Any picture as the first frame of a session: its middle, at the size of the world.

export async function squeeze(file, [height, width, channels]) {
  const picture = await createImageBitmap(file);
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const times = Math.max(width / picture.width, height / picture.height);
  const [wide, high] = [picture.width * times, picture.height * times];
  context.fillRect(0, 0, width, height); // black behind what is transparent
  context.imageSmoothingEnabled = times < 1; // pixel art that has to grow stays crisp
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, (width - wide) / 2, (height - high) / 2, wide, high);
  const rgba = context.getImageData(0, 0, width, height).data;
  const out = new Uint8Array(height * width * channels);
  for (let i = 0, at = 0; at < out.length; i += 4, at += channels) {
    if (channels === 3) out.set(rgba.subarray(i, i + 3), at);
    else out[at] = Math.round(0.299 * rgba[i] + 0.587 * rgba[i + 1] + 0.114 * rgba[i + 2]);
  }
  return out;
}

// Fill an ImageData with a frame of the world, and return it.
export function pixels(bytes, [, , channels], image) {
  for (let i = 0, at = 0; at < bytes.length; i += 4, at += channels) {
    image.data[i] = bytes[at];
    image.data[i + 1] = bytes[channels === 3 ? at + 1 : at];
    image.data[i + 2] = bytes[channels === 3 ? at + 2 : at];
    image.data[i + 3] = 255;
  }
  return image;
}

// Call take(file) for what is chosen, dropped or pasted.
export function onPicture(chooser, take) {
  chooser.onchange = () => { take(chooser.files[0]); chooser.value = ""; };
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => { event.preventDefault(); take(event.dataTransfer.files[0]); });
  addEventListener("paste", (event) => take(event.clipboardData.files[0]));
}
