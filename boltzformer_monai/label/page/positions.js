// Sliders for the three slices, and in words where the crosshair is.

const PLANES = ["sagittal", "coronal", "axial"]; // across Right, Anterior, Superior, the order of the viewer's voxels
const ENDS = [["L", "R"], ["P", "A"], ["I", "S"]];

const $ = (id) => document.getElementById(id);

/** `onMove([x, y, z])` is called with voxels in RAS order when the user moves a slider. */
export class PositionControls {
  constructor(onMove) {
    for (const plane of PLANES) {
      $(plane).addEventListener("input", () => onMove(PLANES.map((name) => Number($(name).value))));
    }
  }

  /** Another scan with so many voxels along Right, Anterior and Superior. */
  reset(size) {
    PLANES.forEach((plane, axis) => Object.assign($(plane), { max: size[axis] - 1, disabled: false }));
  }

  /** The crosshair moved; `place` has voxel, mm (RAS), the scan's value and the label's name or "". */
  show({ voxel, mm, value, label }) {
    PLANES.forEach((plane, axis) => {
      const slider = $(plane);
      slider.value = voxel[axis];
      const text = `${voxel[axis] + 1} of ${Number(slider.max) + 1}`;
      $(`${plane}-value`).value = text;
      slider.setAttribute("aria-valuetext", text);
    });
    const where = mm.map((at, axis) => `${ENDS[axis][at < 0 ? 0 : 1]} ${Math.abs(at).toFixed(1)}`).join(", ");
    const grey = Number(Number(value).toPrecision(5));
    $("place").textContent = `${where} mm; value ${grey}${label ? `; ${label}` : ""}`;
  }
}
