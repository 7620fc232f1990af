// Resizes and crops an image as in training: the shorter side to the model's
// size with Pillow's bicubic filter, rounded to 8 bits after each direction, then
// a center crop. Browsers resize with other filters.

// Size of a resized image, and the position of the crop in it.
export function geometry(height, width, rows, columns) {
  const half = (x) => Math.floor((x + (x % 4 === 3)) / 2); // rounds to even
  const resizedHeight = Math.max(rows, Math.floor((columns * height) / width));
  const resizedWidth = Math.max(columns, Math.floor((rows * width) / height));
  return {
    resizedHeight,
    resizedWidth,
    top: half(resizedHeight - rows),
    left: half(resizedWidth - columns),
  };
}

function bicubic(x) {
  x = Math.abs(x);
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
}

// Filters of `count` pixels, starting at `first`, of a side resized from `from`
// to `to`: the first input pixel and the weights of that and the following ones.
function windows(from, to, first, count) {
  const scale = from / to;
  const stretch = Math.max(scale, 1);
  return Array.from({ length: count }, (_, i) => {
    const center = (first + i + 0.5) * scale;
    const start = Math.max(0, Math.floor(center - 2 * stretch + 0.5));
    const end = Math.min(from, Math.floor(center + 2 * stretch + 0.5));
    const weights = [];
    for (let x = start; x < end; x++)
      weights.push(bicubic((x - center + 0.5) / stretch));
    const sum = weights.reduce((a, b) => a + b);
    return { start, weights: weights.map((weight) => weight / sum) };
  });
}

// The RGB bytes of an `ImageData`, resized and cropped, row by row.
export function pixels({ data, height, width }, rows, columns) {
  const cut = geometry(height, width, rows, columns);
  const across = windows(width, cut.resizedWidth, cut.left, columns);
  const down = windows(height, cut.resizedHeight, cut.top, rows);
  // Only these rows of the image are read.
  const top = Math.min(...down.map(({ start }) => start));
  const last = Math.max(...down.map((w) => w.start + w.weights.length));
  // Clamped arrays clip, and round as Pillow does except for ties.
  const narrow = new Uint8ClampedArray((last - top) * columns * 3);
  for (let y = top, to = 0; y < last; y++)
    for (const { start, weights } of across)
      for (let channel = 0; channel < 3; channel++) {
        let sum = 0;
        let at = 4 * (y * width + start) + channel;
        for (const weight of weights) {
          sum += weight * data[at];
          at += 4;
        }
        narrow[to++] = sum;
      }
  const stride = 3 * columns;
  const result = new Uint8ClampedArray(rows * stride);
  down.forEach(({ start, weights }, row) => {
    for (let x = 0; x < stride; x++) {
      let sum = 0;
      weights.forEach((weight, i) => {
        sum += weight * narrow[(start - top + i) * stride + x];
      });
      result[row * stride + x] = sum;
    }
  });
  return result;
}
