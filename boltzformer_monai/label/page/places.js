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

/** Where a place in mm is in voxels, not rounded; `affine` has four rows, from voxels to mm. */
export function voxelOf(affine, mm) {
  const [a, b, c] = [0, 1, 2].map((column) => affine.slice(0, 3).map((row) => row[column]));
  const from = mm.map((at, axis) => at - affine[axis][3]);
  const cross = ([x, y, z], [u, v, w]) => [y * w - z * v, z * u - x * w, x * v - y * u];
  const dot = (one, other) => one[0] * other[0] + one[1] * other[1] + one[2] * other[2];
  const volume = dot(a, cross(b, c));
  return [dot(from, cross(b, c)), dot(from, cross(c, a)), dot(from, cross(a, b))].map((part) => part / volume);
}

/** The voxel [i, j, k] of a value nearest to a voxel, at most `reach` away along each axis; null if there is none. */
export function nearestVoxel(values, [width, height, depth], value, [i, j, k], reach) {
  const within = (middle, away, count) => [Math.max(0, Math.floor(middle - away)), Math.min(count - 1, Math.ceil(middle + away))];
  const [x, y, z] = [within(i, reach[0], width), within(j, reach[1], height), within(k, reach[2], depth)];
  let [best, least] = [null, Infinity];
  for (let c = z[0]; c <= z[1]; c += 1) {
    for (let b = y[0]; b <= y[1]; b += 1) {
      for (let a = x[0]; a <= x[1]; a += 1) {
        if (values[a + width * (b + height * c)] !== value) continue;
        const away = (a - i) ** 2 + (b - j) ** 2 + (c - k) ** 2;
        if (away < least) [best, least] = [[a, b, c], away];
      }
    }
  }
  return best;
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
