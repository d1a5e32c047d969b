// Where to look for a label: a voxel of it, near its middle, in the slice where it is largest.

/**
 * Map from label value to voxel [i, j, k].
 * `values` runs fastest along i, as NIfTI stores it; `size` is [I, J, K].
 */
export function placesOf(values, [width, height, depth]) {
  const counts = new Map();
  const plane = width * height;
  for (let k = 0, index = 0; k < depth; k += 1) {
    for (const end = index + plane; index < end; index += 1) {
      const value = values[index];
      if (value === 0) continue;
      if (!counts.has(value)) counts.set(value, new Uint32Array(depth));
      counts.get(value)[k] += 1;
    }
  }
  const places = new Map();
  for (const [value, perSlice] of counts) {
    const k = perSlice.indexOf(perSlice.reduce((most, count) => Math.max(most, count)));
    places.set(value, [...middle(values.subarray(k * plane, (k + 1) * plane), value, width), k]);
  }
  return places;
}

/** The pixel of this value that is nearest to the centre of all its pixels: the centre of a ring is outside it. */
function middle(slice, value, width) {
  const pixels = [];
  let [x, y] = [0, 0];
  slice.forEach((other, index) => {
    if (other !== value) return;
    const pixel = [index % width, Math.floor(index / width)];
    pixels.push(pixel);
    x += pixel[0];
    y += pixel[1];
  });
  const away = ([i, j]) => (i - x / pixels.length) ** 2 + (j - y / pixels.length) ** 2;
  return pixels.reduce((best, pixel) => (away(pixel) < away(best) ? pixel : best));
}
