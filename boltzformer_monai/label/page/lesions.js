// The lesions of a prompt: a table in the server's order, the largest first. A row moves the views to its lesion.

import { element, inMillilitres, percent } from "./elements.js";

const MOST = 100; // rows; thousands of specks would hide the rest of the page
const HEADINGS = [
  ["No.", "Number; Enter moves the views there"],
  ["ml", "Volume in millilitres"],
  ["mm", "Long and short axis in one slice, in millimetres"],
  ["HU", "Mean intensity in Hounsfield units"],
  ["conf.", "Confidence: mean probability"],
];

const known = (value) => value !== null && value !== undefined;
const number = (value) => value.toFixed(value < 9.95 ? 1 : 0);

/** What does not fit into the row. */
function details(lesion) {
  const [first, last] = lesion.slices.map((index) => index + 1);
  const spread = known(lesion.mean_hu)
    ? [`${number(lesion.mean_hu)} ± ${number(lesion.sd_hu)} HU (${Math.round(lesion.min_hu)} to ${Math.round(lesion.max_hu)})`]
    : [];
  return [
    `largest diameter ${number(lesion.diameter_mm)} mm`,
    `${lesion.plane} slices ${first} to ${last} of the file`,
    ...spread,
    ...(lesion.at_edge ? ["reaches the scan's edge: the sizes are lower bounds"] : []),
  ].join(", ");
}

function row(lesion, prompt, onGo) {
  const at = element("button", { type: "button", textContent: String(lesion.number), tabIndex: -1 });
  const bound = lesion.at_edge ? "≥ " : "";
  const axes = `${number(lesion.long_axis_mm)} × ${number(lesion.short_axis_mm)}`;
  const cells = [
    `${bound}${inMillilitres(lesion.volume_ml)}`,
    `${bound}${axes}`,
    known(lesion.mean_hu) ? Math.round(lesion.mean_hu).toString() : "–",
    known(lesion.confidence) ? percent(lesion.confidence) : "–",
  ];
  at.setAttribute("aria-label", `Go to lesion ${lesion.number} of ${prompt}: ${cells[0]} ml, ${cells[1]} mm`);
  const made = element("tr", { title: details(lesion) }, element("th", { scope: "row" }, at));
  made.append(...cells.map((text) => element("td", { textContent: text })));
  made.addEventListener("click", () => onGo(lesion, at));
  return made;
}

function heading([short, long]) {
  return element("th", { scope: "col" }, element("abbr", { title: long, textContent: short }));
}

function caption(lesions, shown) {
  if (lesions.length === 1) return "1 lesion";
  const rest = lesions.length > shown ? `, the ${shown} largest here` : "";
  return `${lesions.length} lesions${rest}`;
}

/** Tab comes to one row; the arrows, Home and End go on from there. */
function walk(buttons) {
  const to = (index) => {
    const next = buttons[Math.max(0, Math.min(buttons.length - 1, index))];
    for (const each of buttons) each.tabIndex = each === next ? 0 : -1;
    next.focus();
  };
  return (event) => {
    const here = buttons.indexOf(document.activeElement);
    const target = { ArrowDown: here + 1, ArrowUp: here - 1, Home: 0, End: buttons.length - 1 }[event.key];
    if (target === undefined || here < 0 || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    to(target);
  };
}

/** The table of a finding's lesions; `onGo(lesion)` is called for the row that is chosen. */
export function lesionTable(finding, onGo) {
  const shown = finding.lesions.slice(0, MOST);
  const choose = (lesion, button) => {
    table.querySelector("[aria-current]")?.removeAttribute("aria-current");
    button.closest("tr").setAttribute("aria-current", "true");
    for (const each of buttons) each.tabIndex = each === button ? 0 : -1;
    button.focus();
    onGo(lesion);
  };
  const rows = shown.map((lesion) => row(lesion, finding.prompt, choose));
  const table = element(
    "table",
    { className: "lesions" },
    element("caption", { textContent: caption(finding.lesions, shown.length) }),
    element("thead", {}, element("tr", {}, ...HEADINGS.map(heading))),
    element("tbody", {}, ...rows),
  );
  const buttons = [...table.querySelectorAll("button")];
  const first = Math.max(0, shown.findIndex((lesion) => lesion.at_point));
  buttons[first].tabIndex = 0;
  if (shown[first].at_point) rows[first].setAttribute("aria-current", "true");
  table.addEventListener("keydown", walk(buttons));
  return element("div", { className: "scroll" }, table);
}
