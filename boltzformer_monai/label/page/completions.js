// Completions of the prompt that is being typed: a combobox with a list box, and a line that says how the text is read.

import { element } from "./elements.js";
import { promptAt, withPromptAt } from "./prompts.js";

const PAUSE_MS = 150; // of typing, before the server is asked

/** How the server reads a text, where that is not plain; null if there is nothing to say. */
function reading({ understood, refused, completions }) {
  if (!understood) return completions.length ? null : (refused ?? null);
  const { target, changes, score, size_limit: limit } = understood;
  const how = changes.length ? `Understood as ${target} (${changes.join("; ")}; score ${score.toFixed(2)}). ` : "";
  const size = limit ? `Lesions of a size ${limit.text} will be listed; the mask holds all.` : "";
  return (how + size).trim() || null;
}

export class Completions {
  #box;
  #list;
  #told;
  #ask;
  #active = -1;
  #timer = 0;
  #asking = null;

  /** `ask(text, signal)` resolves to the server's completions of a text. */
  constructor(box, list, told, ask) {
    [this.#box, this.#list, this.#told, this.#ask] = [box, list, told, ask];
    box.addEventListener("input", () => this.#soon());
    box.addEventListener("blur", () => this.close());
    box.addEventListener("click", () => this.close());
    // Before the page's own handler of Enter.
    box.addEventListener("keydown", (event) => this.#key(event), { capture: true });
    list.addEventListener("mousedown", (event) => event.preventDefault()); // the focus stays in the text box
    list.addEventListener("click", (event) => this.#choose(event.target.closest("[role=option]")));
  }

  /** Hides the list, and drops what has not been answered. */
  close() {
    clearTimeout(this.#timer);
    this.#asking?.abort();
    this.#list.hidden = true;
    this.#box.setAttribute("aria-expanded", "false");
    this.#activate(-1);
  }

  #soon() {
    this.close();
    this.#timer = setTimeout(() => this.#look(), PAUSE_MS);
  }

  async #look() {
    const { text } = promptAt(this.#box.value, this.#box.selectionStart);
    this.#asking = new AbortController();
    const { signal } = this.#asking;
    if (!text) {
      this.#told.replaceChildren();
      return;
    }
    let found;
    try {
      found = await this.#ask(text, signal);
    } catch {
      return; // typing goes on without completions; what cannot be read is told when it is run
    }
    if (signal.aborted) return;
    this.#tell(found);
    this.#show(found.completions.filter(({ target }) => target !== text));
  }

  #show(completions) {
    const options = completions.map(({ target, name }, index) => {
      const other = name === target ? [] : [element("span", { className: "by", textContent: name })];
      const option = element("li", { id: `completion-${index}`, role: "option" }, element("span", { textContent: target }), ...other);
      option.dataset.target = target;
      option.setAttribute("aria-selected", "false");
      return option;
    });
    this.#list.replaceChildren(...options);
    this.#list.hidden = options.length === 0;
    this.#box.setAttribute("aria-expanded", String(options.length > 0));
  }

  #tell(found) {
    const near = found.understood || found.completions.length ? [] : (found.near ?? []);
    const offers = near.flatMap((name, index) => {
      const button = element("button", { type: "button", textContent: name });
      button.addEventListener("click", () => this.#take(name));
      return [...(index ? [" "] : []), button];
    });
    const text = reading(found);
    this.#told.replaceChildren(...(text ? [`${text} `] : []), ...(offers.length ? ["Did you mean ", ...offers, "?"] : []));
  }

  #key(event) {
    if (this.#list.hidden || event.isComposing || event.ctrlKey || event.altKey || event.metaKey) return;
    const options = this.#list.children;
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) {
      const start = this.#active < 0 && step < 0 ? 0 : this.#active;
      this.#activate((start + step + options.length) % options.length);
    } else if (event.key === "Enter" && this.#active >= 0) this.#choose(options[this.#active]);
    else if (event.key === "Escape") this.close();
    else {
      if (event.key === "Enter") this.close(); // the text is run as it is
      return;
    }
    event.preventDefault();
    event.stopImmediatePropagation();
  }

  #activate(index) {
    this.#list.children[this.#active]?.setAttribute("aria-selected", "false");
    this.#active = index;
    const option = this.#list.children[index];
    if (!option) {
      this.#box.removeAttribute("aria-activedescendant");
      return;
    }
    option.setAttribute("aria-selected", "true");
    option.scrollIntoView({ block: "nearest" });
    this.#box.setAttribute("aria-activedescendant", option.id);
  }

  #choose(option) {
    if (option) this.#take(option.dataset.target);
  }

  #take(name) {
    const { text, caret } = withPromptAt(this.#box.value, this.#box.selectionStart, name);
    this.#box.value = text;
    this.#box.focus();
    this.#box.setSelectionRange(caret, caret);
    this.#told.replaceChildren();
    this.close();
  }
}
