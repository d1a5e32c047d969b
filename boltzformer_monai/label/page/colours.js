// One colour for every label value: first a list that is easy to tell apart on grey, then around the colour circle.

const FIRST = [
  [230, 60, 60], [70, 180, 255], [90, 200, 90], [255, 200, 40], [200, 110, 255], [255, 140, 50],
  [40, 210, 200], [255, 120, 190], [175, 215, 60], [130, 140, 255], [205, 150, 95], [240, 240, 240],
];
const GOLDEN_ANGLE = 137.508;

function hueToRgb(hue) {
  const channel = (n) => {
    const k = (n + hue / 30) % 12;
    return Math.round(255 * (0.6 - 0.36 * Math.max(-1, Math.min(k - 3, 9 - k, 1))));
  };
  return [channel(0), channel(8), channel(4)];
}

/** [red, green, blue], 0–255, of a label value from 1. */
export function colourOf(value) {
  return value <= FIRST.length ? FIRST[value - 1] : hueToRgb((value * GOLDEN_ANGLE) % 360);
}

/** NiiVue's label colormap for the values 0…highest; 0 and the hidden ones are transparent. */
export function labelColormap(names, hidden) {
  const highest = Math.max(0, ...names.keys());
  const values = Array.from({ length: highest + 1 }, (_, value) => value);
  const colours = values.map((value) => (value ? colourOf(value) : [0, 0, 0]));
  return {
    R: colours.map((colour) => colour[0]),
    G: colours.map((colour) => colour[1]),
    B: colours.map((colour) => colour[2]),
    A: values.map((value) => (names.has(value) && !hidden.has(value) ? 255 : 0)),
    I: values,
    labels: values.map((value) => names.get(value) ?? ""),
  };
}
