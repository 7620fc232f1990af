// Shows an attention map in colors, to be laid over an image.

// From no attention to the most, in equal steps.
const STOPS = ["#30237a", "#3d6fe0", "#22b8cf", "#3ddc84", "#f2e34c", "#ff9330", "#d8261c"];

// Fills a canvas with `{rows, columns, values}`, from 0 to the largest value.
export function drawHeatmap(canvas, { rows, columns, values }) {
  const largest = Math.max(...values);
  const map = new ImageData(columns, rows);
  values.forEach((value, i) => map.data.fill((255 * value) / largest, 4 * i, 4 * i + 4));
  for (let i = 3; i < map.data.length; i += 4) map.data[i] = 255;
  const small = new OffscreenCanvas(columns, rows);
  small.getContext("2d").putImageData(map, 0, 0);
  // The values are interpolated, not their colors.
  const { width, height } = canvas;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.drawImage(small, 0, 0, width, height);
  const large = context.getImageData(0, 0, width, height);
  const colors = drawScale(new OffscreenCanvas(256, 1));
  for (let i = 0; i < large.data.length; i += 4) {
    const at = 4 * large.data[i];
    large.data.set(colors.subarray(at, at + 4), i);
  }
  context.putImageData(large, 0, 0);
}

// Fills a canvas with all colors, from left to right. Returns its bytes.
export function drawScale(canvas) {
  const { width, height } = canvas;
  const context = canvas.getContext("2d");
  context.fillStyle = context.createLinearGradient(0, 0, width, 0);
  STOPS.forEach((stop, i) => context.fillStyle.addColorStop(i / (STOPS.length - 1), stop));
  context.fillRect(0, 0, width, height);
  return context.getImageData(0, 0, width, height).data;
}
