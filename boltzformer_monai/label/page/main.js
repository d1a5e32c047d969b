// The page: choose a scan, type what to look for, see and save what was found.

import * as api from "./api.js";
import { Completions } from "./completions.js";
import { showDownloads } from "./downloads.js";
import { inWords } from "./elements.js";
import { showCaveats, showFindings } from "./findings.js";
import { PositionControls } from "./positions.js";
import { parsePrompts, startsRun, withPrompt } from "./prompts.js";
import { busy, done, failed, guard } from "./status.js";
import { WindowControls } from "./windows.js";

const $ = (id) => document.getElementById(id);
const share = (id) => Number($(id).value) / 100;

let viewer = null;
let images = new Map();
let loading = null; // the AbortController of the scan that is being fetched
let running = null; // the AbortController of the request under way
let here = null; // where the crosshair is: millimetres in RAS
let looked = null; // where the shown result was looked at closer, likewise

const windows = new WindowControls((low, high) => viewer.setWindow(low, high));
const positions = new PositionControls((voxel) => viewer.moveTo(voxel));
const completions = new Completions($("prompts"), $("completions"), $("understood"), api.complete);

async function startViewer() {
  let module;
  try {
    module = await import("./viewer.js");
  } catch {
    throw new Error("the viewer was not built into this installation; run `make page` in the repository and reload");
  }
  if (!document.createElement("canvas").getContext("webgl2")) {
    throw new Error("this browser has no WebGL 2, which the viewer needs; try another one or switch it on");
  }
  viewer = await module.Viewer.attach($("canvas"), $("marks"), {
    onPlace: (place) => {
      here = place.mm;
      positions.show(place);
    },
    onWindow: (low, high) => windows.follow(low, high),
    onLost: failed,
  });
}

function fill(config) {
  $("version").textContent = `version ${config.version}`;
  images = new Map(config.images.map((image) => [image.id, image]));
  $("scan").replaceChildren(...config.images.map(({ id }) => new Option(id, id)));
  $("scan").disabled = images.size === 0;
  $("prompts").value ||= config.prompts.join("\n");
  $("presence-line").hidden = !config.presence;
  const [fewest, most] = [Math.min(...config.uncertainty), Math.max(...config.uncertainty)];
  Object.assign($("repeats"), { min: fewest, max: most, value: Math.min(most, Math.max(fewest, 8)) });
  $("known").hidden = config.targets.length === 0;
  $("targets").replaceChildren(
    ...config.targets.map((target) => {
      const button = Object.assign(document.createElement("button"), { type: "button", textContent: target });
      button.addEventListener("click", () => ($("prompts").value = withPrompt($("prompts").value, target)));
      return button;
    }),
  );
}

async function loadScan() {
  const id = $("scan").value;
  loading?.abort();
  running?.abort();
  loading = new AbortController();
  offerRuns(false);
  looked = null;
  $("results").hidden = true;
  $("uncertainty-opacity").disabled = true;
  viewer.clear();
  busy(`Loading ${id}…`);
  const { signal } = loading;
  const bytes = await api.scan(id, signal);
  const scan = await viewer.showScan(bytes, signal);
  if (signal.aborted) return;
  positions.reset(scan.size);
  windows.reset({ ...scan, modality: images.get(id).modality });
  viewer.moveTo(scan.size.map((count) => Math.floor(count / 2)));
  offerRuns(true);
  done(`${id}: ${scan.size.join(" × ")} voxels. Type what to look for.`);
}

function offerRuns(offered) {
  for (const id of ["run", "look-closer", "keep-one"]) $(id).disabled = !offered;
}

function order() {
  const prompts = parsePrompts($("prompts").value);
  if (prompts.length === 0) throw new Error("no prompt; type what to look for, one a line");
  if ($("uncertain").checked && !$("repeats").checkValidity()) {
    throw new Error(`the number of decodings must be ${$("repeats").min} to ${$("repeats").max}`);
  }
  if (!$("threshold").checkValidity()) throw new Error("the probability must be between 0.01 and 0.99");
  return {
    image: $("scan").value,
    prompts,
    uncertainty: $("uncertain").checked ? Number($("repeats").value) : 0,
    ...($("threshold").value && { threshold: Number($("threshold").value) }),
    ...(!$("presence-line").hidden && { presence: $("presence").checked }),
  };
}

async function run(atPoint) {
  const request = { ...order(), ...atPoint };
  busy(`Looking for ${request.prompts.length === 1 ? request.prompts[0] : `${request.prompts.length} prompts`}…`);
  const { signal } = running; // aborted by Stop, and when another scan is chosen, which may be at any moment
  const reply = await api.segment(request, signal);
  const bytes = async (name) => (await api.file(reply.result, name, signal)).arrayBuffer();
  const labels = await bytes("labels.nii.gz");
  const uncertainty = reply.uncertainty ? await bytes("uncertainty.nii.gz") : null;
  await show(reply, { labels, uncertainty }, request, signal);
}

async function show(reply, { labels, uncertainty }, { image, point, look_closer: closer, closer_point: region }, signal) {
  const names = new Map(reply.findings.filter(({ found }) => found).map(({ label, prompt }) => [label, prompt]));
  if (signal.aborted) return;
  offerStop(false); // the previous result is removed from here on
  viewer.clear();
  const places = await viewer.showLabels(labels, names, share("opacity"), signal);
  if (uncertainty) await viewer.showUncertainty(uncertainty, share("uncertainty-opacity"), signal);
  if (signal.aborted) return;
  looked = closer ? (region ?? point) : null;
  $("uncertainty-opacity").disabled = !uncertainty;
  showCaveats($("caveats"), reply.caveats);
  showFindings($("findings"), reply.findings, places, {
    caveats: reply.caveats,
    onLesion: (finding, lesion) => viewer.goToLesion(lesion, finding.label),
    onToggle: (label, visible) => viewer.setVisible(label, visible),
    onGo: (voxel) => viewer.goTo(voxel),
  });
  showDownloads($("downloads"), reply, image, guard);
  $("results").hidden = false;
  const numbered = reply.findings.filter(({ label, found }) => found && places.has(label));
  viewer.markLesions(numbered.flatMap(({ label, lesions }) => (lesions ?? []).map((each) => ({ ...each, value: label }))));
  if (!point && numbered.length) viewer.goTo(places.get(numbered[0].label));
  const how = `${reply.seconds.toFixed(1)} s${reply.cached ? ", with image features kept from before" : ""}`;
  const at = point ? `; at ${inWords(point)} mm` : "";
  const where = `${at}${region ? `, looked at closer at ${inWords(region)} mm` : closer ? ", looked at closer" : ""}`;
  const missing = reply.findings.filter(({ found }) => !found).map(({ prompt }) => prompt);
  const rest =
    (missing.length ? ` Not found: ${missing.join(", ")}.` : "") +
    (reply.in_doubt ? " In doubt: see the remarks in the list." : "");
  done(`${names.size} of ${reply.findings.length} found in ${how}${where}.${rest}`);
}

function offerStop(offered) {
  if (document.activeElement === $("stop")) $("run").focus();
  $("stop").disabled = !offered;
}

async function submit(atPoint = {}) {
  completions.close();
  if (running || $("run").disabled) return;
  running = new AbortController();
  $("run").setAttribute("aria-disabled", "true");
  offerStop(true);
  await guard(() => run(atPoint));
  offerStop(false);
  $("run").removeAttribute("aria-disabled");
  running = null;
}

function stop() {
  running?.abort();
  offerStop(false);
  done("Stopped. The previous result is unchanged.");
}

function slide(id, apply) {
  const update = () => {
    $(`${id}-value`).value = `${$(id).value} %`;
    viewer?.[apply](share(id));
  };
  $(id).addEventListener("input", update);
  update();
}

async function start() {
  busy("Loading…");
  fill(await api.config());
  $("sign-in").hidden = true;
  $("token").value = "";
  if (!viewer) await startViewer();
  if (images.size === 0) throw new Error("the server has no scan; put one into its studies folder and reload");
  await loadScan();
}

function signIn() {
  api.signIn($("token").value);
  guard(start);
}

api.onRefused(() => ($("sign-in").hidden = false));
slide("opacity", "setLabelOpacity");
slide("uncertainty-opacity", "setUncertaintyOpacity");
$("radiological").addEventListener("change", () => viewer?.setRadiological($("radiological").checked));
$("scan").addEventListener("change", () => guard(loadScan));
$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
$("stop").addEventListener("click", stop);
$("look-closer").addEventListener("click", () => submit({ point: here, look_closer: true }));
$("keep-one").addEventListener("click", () => {
  // The region that is shown, not one around the lesion: the result would be another.
  const again = looked ? { look_closer: true, closer_point: looked } : {};
  submit({ point: here, keep_lesions: "at_point", ...again });
});
$("prompts").addEventListener("keydown", (event) => {
  if (!startsRun(event)) return;
  event.preventDefault();
  submit();
});
$("use-token").addEventListener("click", signIn);
$("token").addEventListener("keydown", (event) => {
  if (!startsRun(event)) return;
  event.preventDefault();
  signIn();
});
window.addEventListener("unhandledrejection", (event) => failed(event.reason));
guard(start);
