// What was found of every prompt: colour, volume, confidence, lesions; or plainly that it was not.

import { colourOf } from "./colours.js";
import { element, inMillilitres, percent } from "./elements.js";
import { lesionTable } from "./lesions.js";

function found(finding, { onToggle, onGo, onLesion, place }) {
  const box = element("input", { type: "checkbox", checked: true, title: "Show" });
  box.addEventListener("change", () => onToggle(finding.label, box.checked));
  const swatch = element("span", { className: "swatch" });
  swatch.style.backgroundColor = `rgb(${colourOf(finding.label).join(", ")})`;
  const name = element("label", { className: "name" }, box, swatch, element("span", { textContent: finding.prompt }));
  const numbers = [`${inMillilitres(finding.volume_ml)} ml`, `confidence ${percent(finding.confidence)}`];
  const item = element("li", {}, name, element("span", { className: "numbers", textContent: numbers.join(", ") }));
  if (place) {
    const go = element("button", { type: "button", textContent: "Go to" });
    go.setAttribute("aria-label", `Go to ${finding.prompt}`);
    go.addEventListener("click", () => onGo(place));
    item.append(go);
  } else {
    item.lastChild.textContent += "; covered by other prompts";
  }
  if (finding.lesions?.length) item.append(lesionTable(finding, (lesion) => onLesion(finding, lesion)));
  else if (place && finding.lesions) item.append(caveat("no lesion of the size that is listed", false));
  return item;
}

function absent(finding) {
  const name = element("span", { className: "name" }, element("span", { textContent: finding.prompt }));
  const item = element("li", {}, name, element("span", { className: "absent", textContent: "not found" }));
  if (finding.presence !== null && finding.presence !== undefined) {
    const text = `highest presence ${percent(finding.presence)}`;
    item.append(element("span", { className: "numbers", textContent: text }));
  }
  return item;
}

/** What lies at the point that was asked for. */
function atPoint({ at_point: point }) {
  if (!point) return [];
  if (point.distance_mm === null) return [caveat("no lesion near the point", false)];
  const which = point.lesion === null ? "an unlisted lesion" : `lesion ${point.lesion}`;
  const away = point.distance_mm > 0 ? `, ${point.distance_mm.toFixed(1)} mm away` : "";
  const dropped = point.dropped ? `; ${point.dropped} other${point.dropped > 1 ? "s" : ""} dropped` : "";
  return [caveat(`at the point: ${which}${away}${dropped}`, false)];
}

const caveat = (text, doubtful = true) =>
  element("span", { className: doubtful ? "caveat" : "note", textContent: text });

/** Caveats of the whole result; those of a prompt are in its row. Hidden if there are none. */
export function showCaveats(list, caveats) {
  const ofAll = (caveats ?? []).filter(({ prompt }) => prompt === undefined);
  list.replaceChildren(...ofAll.map((each) => element("li", {}, caveat(each.text, each.in_doubt))));
  list.hidden = ofAll.length === 0;
}

/** Fills the list; `places` maps label values to voxels, `caveats` say which remarks put a result in doubt; 
 *  `onToggle(label, visible)`, `onGo(voxel)` and `onLesion(finding, lesion)` are called. */
export function showFindings(list, findings, places, { caveats, onToggle, onGo, onLesion }) {
  const mild = new Set((caveats ?? []).filter((each) => !each.in_doubt).map(({ text }) => text));
  const item = (finding) => {
    const place = places.get(finding.label);
    const row = finding.found ? found(finding, { onToggle, onGo, onLesion, place }) : absent(finding);
    row.append(...atPoint(finding), ...(finding.caveats ?? []).map((text) => caveat(text, !mild.has(text))));
    return row;
  };
  list.replaceChildren(...findings.map(item));
}
