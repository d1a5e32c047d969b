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
