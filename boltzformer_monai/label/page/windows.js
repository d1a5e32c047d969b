// The grey window: presets for CT, and level and width as sliders.

const CT = { "Soft tissue": [40, 400], Lung: [-600, 1500], Bone: [400, 1800], Brain: [40, 80], Liver: [60, 160] };
const HU_RANGE = [-1100, 3100]; // beyond lies metal, and padding outside the scanner's circle
const WHOLE = "Scan's range";
const OWN = "Own";

const $ = (id) => document.getElementById(id);

/** Sliders and presets; `onChange(low, high)` is called when the user moves one. */
export class WindowControls {
  constructor(onChange) {
    this.onChange = onChange;
    this.presets = {};
    for (const id of ["level", "width"]) {
      $(id).addEventListener("input", () => {
        this.#show(OWN);
        this.#notify();
      });
    }
    $("window-preset").addEventListener("change", () => {
      const chosen = this.presets[$("window-preset").value];
      if (chosen) this.#set(...chosen);
      this.#notify();
    });
  }

  /** Another scan: its darkest and brightest value, the viewer's own window, and its modality or null. */
  reset({ lowest, highest, low, high, modality }) {
    const hounsfield = modality === "CT" || (modality === null && lowest < -500); // nothing but air in HU is so low
    if (hounsfield) [lowest, highest] = [Math.max(lowest, HU_RANGE[0]), Math.min(highest, HU_RANGE[1])];
    const whole = [(low + high) / 2, Math.max(high - low, 1e-6)];
    this.presets = hounsfield ? { ...CT, [WHOLE]: whole } : { [WHOLE]: whole };
    $("window-preset").replaceChildren(...[...Object.keys(this.presets), OWN].map((name) => new Option(name, name)));
    const [range, step] = [Math.max(highest - lowest, 1e-6), hounsfield ? 1 : (highest - lowest) / 1000 || 1e-6];
    Object.assign($("level"), { min: lowest, max: highest, step });
    Object.assign($("width"), { min: step, max: range, step });
    const first = Object.keys(this.presets)[0];
    this.#set(...this.presets[first]);
    this.#show(first);
    this.#notify();
  }

  /** The window was changed by the mouse. */
  follow(low, high) {
    this.#set((low + high) / 2, high - low);
    this.#show(OWN);
  }

  #set(level, width) {
    $("level").value = level;
    $("width").value = width;
    this.#show($("window-preset").value);
  }

  #show(preset) {
    $("window-preset").value = preset;
    for (const id of ["level", "width"]) {
      $(`${id}-value`).value = Number(Number($(id).value).toPrecision(4));
    }
  }

  #notify() {
    const [level, width] = [Number($("level").value), Number($("width").value)];
    this.onChange(level - width / 2, level + width / 2);
  }
}
