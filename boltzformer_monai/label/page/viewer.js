// The view: NiiVue with a scan, and on its grid a label map and an uncertainty map.

import { DRAG_MODE, MULTIPLANAR_TYPE, NVImage, Niivue, SHOW_RENDER } from "./vendor/niivue.js";
import { colourOf, labelColormap } from "./colours.js";
import { element } from "./elements.js";
import { nearestVoxel, placesOf, voxelOf } from "./places.js";

const OPTIONS = {
  backColor: [0, 0, 0, 1],
  crosshairColor: [0.35, 0.75, 1, 1],
  crosshairGap: 8,
  crosshairWidth: 0.3,
  crosshairWidthUnit: "percent",
  dragAndDropEnabled: false,
  dragMode: DRAG_MODE.pan,
  fontColor: [0.95, 0.95, 0.95, 1],
  fontMinPx: 15,
  isRadiologicalConvention: true,
  loadingText: "",
  logLevel: "error",
  multiplanarLayout: MULTIPLANAR_TYPE.GRID,
  multiplanarPadPixels: 20,
  multiplanarShowRender: SHOW_RENDER.ALWAYS,
  show3Dcrosshair: true,
  showAllOrientationMarkers: true,
};
// Transparent where certain, then from violet to yellow.
const UNCERTAINTY = { R: [0, 150, 255, 255], G: [0, 40, 110, 255], B: [0, 170, 60, 90], A: [0, 110, 200, 255], I: [0, 60, 150, 255] };
const MOVES = {
  ArrowLeft: [-1, 0, 0], ArrowRight: [1, 0, 0], ArrowUp: [0, 1, 0], ArrowDown: [0, -1, 0],
  PageUp: [0, 0, 1], PageDown: [0, 0, -1],
};
const TURN_DEGREES = 5;
const ACROSS = [2, 1, 0]; // axis across NiiVue's axial, coronal and sagittal slices
const MOST_MARKS = 60; // numbers in the slices at once
const LEAST_PIXELS = 64; // of the canvas; in less, NiiVue gives WebGL tiles of negative size
const FRONT = [160, 15]; // degrees: the patient from the front, a little from the side and from above
const LOST = "the browser lost its graphics context; reload the page";

/** Lowest and highest value; NiiVue's own leave the air out. */
function extremes({ img, hdr }) {
  let [lowest, highest] = [Infinity, -Infinity];
  for (const stored of img) {
    if (stored < lowest) lowest = stored;
    if (stored > highest) highest = stored;
  }
  if (lowest > highest) return [0, 1]; // not a number anywhere
  const ends = [lowest, highest].map((stored) => stored * (hdr.scl_slope || 1) + (hdr.scl_inter || 0));
  return ends.sort((a, b) => a - b);
}

export class Viewer {
  #nv;
  #labels = null;
  #uncertainty = null;
  #names = new Map();
  #hidden = new Set();
  #canvas = null;
  #marks = null;
  #lesions = [];

  /** `marks` is an element over the canvas for the numbers of lesions; `onPlace` receives the place of the crosshair, `onWindow(low, high)` a window changed by the mouse,
   *  `onLost(error)` when the browser takes the graphics away: its driver failed, or other pages needed them. */
  static async attach(canvas, marks, { onPlace, onWindow, onLost }) {
    const viewer = new Viewer();
    [viewer.#canvas, viewer.#marks] = [canvas, marks];
    viewer.#nv = new Niivue(OPTIONS);
    viewer.#nv.addColormap("uncertainty", UNCERTAINTY);
    viewer.#nv.onLocationChange = (place) => onPlace(viewer.#describe(place));
    viewer.#nv.onIntensityChange = (volume) => onWindow(volume.cal_min, volume.cal_max);
    // Before NiiVue sees them: its own keys are single letters that nobody would expect, and one of them is an alert.
    canvas.parentElement.addEventListener("keydown", (event) => viewer.#key(event), { capture: true });
    canvas.parentElement.addEventListener("keyup", (event) => event.stopPropagation(), { capture: true });
    canvas.addEventListener("webglcontextlost", () => onLost(new Error(LOST)));
    // While the page is laid out or left, the canvas may have no room; it is rendered again when it gets some.
    const draw = viewer.#nv.drawScene.bind(viewer.#nv);
    viewer.#nv.drawScene = () => (Math.min(canvas.width, canvas.height) < LEAST_PIXELS ? undefined : viewer.#drawn(draw()));
    await viewer.#nv.attachToCanvas(canvas);
    viewer.#nv.setRenderAzimuthElevation(...FRONT);
    return viewer;
  }

  /** Shows a scan (bytes of a NIfTI file) and nothing over it; resolves to its size (RAS) and its grey values.
   *  Here and below, nothing is displayed once `signal` is aborted: another scan was chosen during decompression. */
  async showScan(bytes, signal) {
    const volume = await NVImage.new(bytes, "scan.nii.gz", "gray", 1);
    if (signal.aborted) return null;
    this.clear();
    while (this.#nv.volumes.length) this.#nv.removeVolume(this.#nv.volumes.at(-1));
    this.#nv.addVolume(volume);
    this.#nv.scene.crosshairPos = [0.5, 0.5, 0.5];
    this.#nv.createOnLocationChange();
    const [lowest, highest] = extremes(volume);
    return {
      size: volume.dimsRAS.slice(1, 4),
      lowest,
      highest,
      low: volume.cal_min,
      high: volume.cal_max,
    };
  }

  /** Lays a label map over the scan; `names` maps values to prompts. Resolves to a voxel [i, j, k] for each value. */
  async showLabels(bytes, names, opacity, signal) {
    const volume = await NVImage.new(bytes, "labels.nii.gz", "gray", opacity);
    if (signal.aborted) return null;
    this.#remove(this.#labels);
    this.#labels = volume;
    this.#names = names;
    this.#hidden.clear();
    volume.setColormapLabel(labelColormap(names, this.#hidden));
    this.#nv.addVolume(volume);
    return placesOf(volume.img, volume.hdr.dims.slice(1, 4));
  }

  /** Lays an uncertainty map (0–255 for 0–1 bit) over the scan. */
  async showUncertainty(bytes, opacity, signal) {
    const volume = await NVImage.new(bytes, "uncertainty.nii.gz", "uncertainty", opacity, null, 0, 255);
    if (signal.aborted) return;
    this.#remove(this.#uncertainty);
    this.#uncertainty = volume;
    this.#nv.addVolume(volume);
  }

  /** Only the scan stays. Throws if WebGL has lost its context, which it does not report itself. */
  clear() {
    if (this.#nv.gl.isContextLost()) throw new Error(LOST);
    this.#remove(this.#uncertainty);
    this.#remove(this.#labels);
    [this.#labels, this.#uncertainty] = [null, null];
    this.markLesions([]);
  }

  /** Shows or hides one label. */
  setVisible(value, visible) {
    if (visible) this.#hidden.delete(value);
    else this.#hidden.add(value);
    this.#labels?.setColormapLabel(labelColormap(this.#names, this.#hidden));
    this.#nv.updateGLVolume();
  }

  setWindow(low, high) {
    const [scan] = this.#nv.volumes;
    if (!scan) return;
    [scan.cal_min, scan.cal_max] = [low, high];
    this.#nv.updateGLVolume();
  }

  setLabelOpacity(share) {
    this.#setOpacity(this.#labels, share);
  }

  setUncertaintyOpacity(share) {
    this.#setOpacity(this.#uncertainty, share);
  }

  /** Whether the patient's right is on the left of the view. */
  setRadiological(yes) {
    this.#nv.setRadiologicalConvention(yes);
  }

  /** Puts the crosshair on a voxel in RAS order, as the sliders count. */
  moveTo(voxel) {
    this.#look(this.#nv.vox2frac(voxel));
  }

  /** Puts the crosshair on a voxel [i, j, k] of the file. */
  goTo([i, j, k]) {
    const rows = this.#nv.volumes[0].hdr.affine;
    const mm = [0, 1, 2].map((axis) => rows[axis][0] * i + rows[axis][1] * j + rows[axis][2] * k + rows[axis][3]);
    this.goToMm(mm);
  }

  /** Puts the crosshair on a place in the patient, millimetres in RAS. */
  goToMm(mm) {
    this.#look(this.#nv.mm2frac(mm, 0, true));
  }

  /** Puts the crosshair into a lesion of a label: on its centre, or where that is outside, on its nearest voxel. */
  goToLesion({ centre_mm: centre, diameter_mm: diameter }, value) {
    const { img, hdr } = this.#labels;
    const reach = hdr.pixDims.slice(1, 4).map((mm) => diameter / (2 * mm) + 1);
    const inside = nearestVoxel(img, hdr.dims.slice(1, 4), value, voxelOf(hdr.affine, centre), reach);
    if (inside) this.goTo(inside);
    else this.goToMm(centre);
  }

  /** Numbers lesions in the slices: [{number, centre_mm, diameter_mm, value}], the first ones before the others. */
  markLesions(lesions) {
    this.#lesions = lesions.map((lesion) => ({ ...lesion, place: this.#nv.mm2frac(lesion.centre_mm, 0, true) }));
    this.#drawn();
  }

  /** Puts the numbers where their lesions were drawn; passes on what the drawing returned. */
  #drawn(returned) {
    const marks = [];
    const scale = this.#canvas.clientWidth / (this.#canvas.width || 1);
    const cross = this.#nv.scene.crosshairPos;
    for (const lesion of this.#labels?.opacity ? this.#lesions : []) {
      if (this.#hidden.has(lesion.value) || marks.length >= MOST_MARKS) continue;
      ACROSS.forEach((axis, plane) => {
        const on = Array.from(lesion.place); // moved into the slice
        on[axis] = cross[axis];
        const [a, b] = [on, lesion.place].map((place) => this.#nv.frac2mm(place, 0, true));
        if (Math.hypot(a[0] - b[0], a[1] - b[1], a[2] - b[2]) > lesion.diameter_mm / 2) return;
        const found = this.#nv.frac2canvasPosWithTile(on, plane);
        if (found) marks.push({ lesion, at: found.pos.map((pixel) => pixel * scale) });
      });
    }
    this.#marks.replaceChildren(...marks.map(({ lesion, at }) => {
      const mark = element("span", { textContent: String(lesion.number) });
      [mark.style.left, mark.style.top] = at.map((pixel) => `${pixel}px`);
      mark.style.borderColor = `rgb(${colourOf(lesion.value).join(", ")})`;
      return mark;
    }));
    return returned;
  }

  #look(fraction) {
    this.#nv.scene.crosshairPos = fraction;
    this.#nv.createOnLocationChange();
    this.#nv.drawScene();
  }

  #remove(volume) {
    if (volume) this.#nv.removeVolume(volume);
  }

  #setOpacity(volume, share) {
    if (volume) this.#nv.setOpacity(this.#nv.volumes.indexOf(volume), share);
  }

  #describe({ mm, values }) {
    const at = (volume) => values[this.#nv.volumes.indexOf(volume)]?.value ?? 0;
    const label = this.#labels ? (this.#names.get(Math.round(at(this.#labels))) ?? "") : "";
    const voxel = Array.from(this.#nv.frac2vox(this.#nv.scene.crosshairPos)).slice(0, 3);
    return { voxel, mm: Array.from(mm).slice(0, 3), value: at(this.#nv.volumes[0]), label };
  }

  #key(event) {
    event.stopPropagation();
    const move = MOVES[event.key];
    if (!move || !this.#nv.volumes.length || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    if (!event.shiftKey) this.#nv.moveCrosshairInVox(...this.#onScreen(move));
    else {
      const { renderAzimuth, renderElevation } = this.#nv.scene;
      this.#nv.setRenderAzimuthElevation(renderAzimuth - TURN_DEGREES * move[0], renderElevation + TURN_DEGREES * move[1]);
    }
  }

  /** The arrow to the right moves to the right of the view, whichever side of the patient that is. */
  #onScreen([x, y, z]) {
    return [this.#nv.opts.isRadiologicalConvention ? -x : x, y, z];
  }
}
