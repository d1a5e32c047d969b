// What was found of every prompt: colour, volume, confidence; or plainly that it was not.

import { colourOf } from "./colours.js";

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

const percent = (share) => `${Math.round(100 * share)} %`;

function millilitres(volume) {
  if (volume > 0 && volume < 0.01) return "under 0.01 ml";
  return `${volume.toFixed(volume < 10 ? 2 : volume < 100 ? 1 : 0)} ml`;
}

function found(finding, { onToggle, onGo, place }) {
  const box = element("input", { type: "checkbox", checked: true, title: "Show" });
  box.addEventListener("change", () => onToggle(finding.label, box.checked));
  const swatch = element("span", { className: "swatch" });
  swatch.style.backgroundColor = `rgb(${colourOf(finding.label).join(", ")})`;
  const name = element("label", { className: "name" }, box, swatch, element("span", { textContent: finding.prompt }));
  const numbers = [millilitres(finding.volume_ml), `confidence ${percent(finding.confidence)}`];
  const item = element("li", {}, name, element("span", { className: "numbers", textContent: numbers.join(", ") }));
  if (place) {
    const go = element("button", { type: "button", textContent: "Go to" });
    go.setAttribute("aria-label", `Go to ${finding.prompt}`);
    go.addEventListener("click", () => onGo(place));
    item.append(go);
  } else {
    item.lastChild.textContent += "; covered by other prompts";
  }
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

const caveat = (text, doubtful = true) =>
  element("span", { className: doubtful ? "caveat" : "note", textContent: text });

/** Caveats of the whole result; those of a prompt are in its row. Hidden if there are none. */
export function showCaveats(list, caveats) {
  const ofAll = (caveats ?? []).filter(({ prompt }) => prompt === undefined);
  list.replaceChildren(...ofAll.map((each) => element("li", {}, caveat(each.text, each.in_doubt))));
  list.hidden = ofAll.length === 0;
}

/** Fills the list; `places` maps label values to voxels, `onToggle(label, visible)` and `onGo(voxel)` are called. */
export function showFindings(list, findings, places, { onToggle, onGo }) {
  const item = (finding) => {
    const row = finding.found ? found(finding, { onToggle, onGo, place: places.get(finding.label) }) : absent(finding);
    row.append(...(finding.caveats ?? []).map((text) => caveat(text)));
    return row;
  };
  list.replaceChildren(...findings.map(item));
}
