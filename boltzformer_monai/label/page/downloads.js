// Buttons that save the files of a result.

import { file } from "./api.js";
import { element } from "./elements.js";

/** Saves a Blob under a name. */
function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** What this reply offers: [text of the button, the server's name of the file]. */
function offered(reply) {
  return [
    ["Masks (NIfTI)", "labels.nii.gz"],
    ...(reply.uncertainty ? [["Uncertainty (NIfTI)", "uncertainty.nii.gz"]] : []),
    ...(reply.dicom_seg ? [["DICOM SEG", "segmentation.dcm"]] : []),
    ...(reply.dicom_sr ? [["DICOM SR", "report.sr.dcm"]] : []),
    ["Lesions (CSV)", "lesions.csv"],
    ["Report (HTML)", "report.html"],
    ["Summary (JSON)", "summary.json"],
  ];
}

/** Fills the group with a button for every file; `guard` runs what may fail and reports it. */
export function showDownloads(group, reply, image, guard) {
  const stem = image.replace(/[^\p{L}\p{N}._-]+/gu, "_");
  const buttons = offered(reply).map(([text, name]) => {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: text });
    button.addEventListener("click", () => guard(async () => save(await file(reply.result, name), `${stem}-${name}`)));
    return button;
  });
  const note = reply.dicom_sr_note;
  group.replaceChildren(...buttons, ...(note ? [element("span", { className: "note", textContent: note })] : []));
}
