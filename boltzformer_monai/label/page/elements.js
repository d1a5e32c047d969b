// Elements made of texts, never of markup, and numbers as they are written here.

export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

export const percent = (share) => `${Math.round(100 * share)} %`;

/** Three digits are enough to read a volume. */
export function inMillilitres(volume) {
  if (volume > 0 && volume < 0.01) return "< 0.01";
  return volume.toFixed(volume < 10 ? 2 : volume < 100 ? 1 : 0);
}

/** A place in the patient: L or R, P or A, I or S, and how far. */
export function inWords(mm) {
  const ends = [["L", "R"], ["P", "A"], ["I", "S"]];
  return mm.map((at, axis) => `${ends[axis][at < 0 ? 0 : 1]} ${Math.abs(at).toFixed(1)}`).join(", ");
}
