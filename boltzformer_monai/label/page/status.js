// The status line, announced by screen readers.

const line = document.getElementById("status");

function show(text, kind) {
  line.className = kind;
  line.textContent = text;
}

export const busy = (text) => show(text, "busy");
export const done = (text) => show(text, "");
export const failed = (error) => show(`Error: ${error.message}`, "error");

/** Runs something that may fail; a failure is one line here, and resolves to undefined. */
export async function guard(action) {
  try {
    return await action();
  } catch (error) {
    if (error.name !== "AbortError") failed(error);
    return undefined;
  }
}
