// The server's own routes. Every failure becomes an Error whose message is one line for the status line.

const BASE = new URL("api/", document.baseURI);
const LONGEST = 300;
let token = "";
let refused = () => {};

/** Sent with every request from now on; kept in memory only. */
export function signIn(value) {
  token = value.trim().replace(/^Bearer\s+/i, "");
}

/** What to do when the server wants a token, or another one. */
export function onRefused(action) {
  refused = action;
}

export class ApiError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

/** What the server calls the reason, in one line; FastAPI gives a list of them for a malformed request. */
async function reason(response) {
  let detail;
  try {
    detail = (await response.json()).detail;
  } catch (error) {
    if (error.name === "AbortError") throw error;
    detail = "";
  }
  if (Array.isArray(detail)) {
    detail = detail.map((part) => part?.msg ?? "").filter(Boolean).join("; ");
  }
  const line = String(detail || `the server answered ${response.status} ${response.statusText}`);
  return line.replace(/\s+/g, " ").trim().slice(0, LONGEST);
}

async function request(path, options = {}) {
  const headers = { ...options.headers, ...(token ? { Authorization: `Bearer ${token}` } : {}) };
  let response;
  try {
    response = await fetch(new URL(path, BASE), { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server does not respond; is it still running?");
  }
  if (response.status === 401) refused();
  if (!response.ok) throw new ApiError(await reason(response), response.status);
  return response;
}

/** What the server offers: scans, default prompts, known names. */
export async function config() {
  return (await request("config")).json();
}

/** The scan as NIfTI, an ArrayBuffer. */
export async function scan(id, signal) {
  return (await request(`images/${encodeURIComponent(id)}/scan.nii.gz`, { signal })).arrayBuffer();
}

/** Runs the model; resolves to the reply with `result` and `findings`. The server stops once `signal` is aborted. */
export async function segment(order, signal) {
  const body = JSON.stringify(order);
  const headers = { "Content-Type": "application/json" };
  return (await request("segment", { method: "POST", headers, body, signal })).json();
}

/** Targets whose name begins like a text, and how the text itself would be read. */
export async function complete(text, signal) {
  return (await request(`complete?${new URLSearchParams({ q: text })}`, { signal })).json();
}

/** One file of a result, as a Blob. */
export async function file(result, name, signal) {
  return (await request(`results/${encodeURIComponent(result)}/${name}`, { signal })).blob();
}
