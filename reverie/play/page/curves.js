// Curves of numbers that came with the last frames.

export const KEPT = 120; // frames that they show

// curves: [numbers, colour] each; each has its own scale, in which 0 is.
export function draw(canvas, curves) {
  const paint = canvas.getContext("2d");
  const { width, height } = canvas;
  paint.clearRect(0, 0, width, height);
  for (const [numbers, colour] of curves) {
    const [low, high] = [Math.min(0, ...numbers), Math.max(0, ...numbers)];
    const y = (number) => height - 8 - ((number - low) / (high - low || 1)) * (height - 16);
    paint.strokeStyle = colour;
    paint.lineWidth = 3;
    paint.beginPath();
    numbers.forEach((number, at) => paint.lineTo((at / (KEPT - 1)) * width, y(number)));
    paint.stroke();
  }
}
