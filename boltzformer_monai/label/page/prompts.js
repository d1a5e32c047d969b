// From the text box to a list of prompts, and back.

/** One prompt a line or between semicolons; blanks around and empty ones do not count, nor does a repetition. */
export function parsePrompts(text) {
  return [...new Set(text.split(/[\n;]/).map((prompt) => prompt.trim()).filter(Boolean))];
}

/** The text with one prompt more, on a line of its own. */
export function withPrompt(text, prompt) {
  const prompts = parsePrompts(text);
  return (prompts.includes(prompt) ? prompts : [...prompts, prompt]).join("\n");
}

/** Does this key start the segmentation? Enter does; with Shift it makes a new line; while composing it chooses. */
export function startsRun(event) {
  return event.key === "Enter" && !event.shiftKey && !event.isComposing;
}

/** Where the prompt at the caret begins and ends, without the blanks around it, and its text. */
export function promptAt(text, caret) {
  const start = Math.max(text.lastIndexOf("\n", caret - 1), text.lastIndexOf(";", caret - 1)) + 1;
  const rest = text.slice(caret).search(/[\n;]/);
  const end = rest < 0 ? text.length : caret + rest;
  const part = text.slice(start, end);
  const before = part.length - part.trimStart().length;
  return { start: start + before, end: end - (part.length - part.trimEnd().length), text: part.trim() };
}

/** The text with another prompt in the place of the one at the caret, and where the caret is then. */
export function withPromptAt(text, caret, prompt) {
  const { start, end } = promptAt(text, caret);
  return { text: text.slice(0, start) + prompt + text.slice(Math.max(start, end)), caret: start + prompt.length };
}
