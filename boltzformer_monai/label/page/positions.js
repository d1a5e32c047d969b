// Sliders for the three slices, and in words where the crosshair is.

import { inWords } from "./elements.js";

const PLANES = ["sagittal", "coronal", "axial"]; // across Right, Anterior, Superior, the order of the viewer's voxels

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
    const grey = Number(Number(value).toPrecision(5));
    $("place").textContent = `${inWords(mm)} mm; value ${grey}${label ? `; ${label}` : ""}`;
  }
}
