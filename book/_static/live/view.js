/* Small things that the widgets share: elements, controls, colours, and a text whose bytes can be
   looked at. */

export const PATHWAYS = ["conv", "attention", "ffn"];
export const COLOURS = ["#56B4E9", "#E69F00", "#009E73"]; // the pathways' in every chapter
export const PAPER = "#FFFFFF", RED = "#D55E00", GREY = "#ABABAB";

/* element("p", { class: "note" }, "text", other elements ...) */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

/* A control with its label and, for a slider, its value in figures: { row, input }. */
export function control(label, tag, attributes = {}, shown = null, ...children) {
  const input = element(tag, attributes, ...children);
  const row = element("label", { class: "live-control" }, element("span", {}, label), input);
  if (shown) {
    const figure = element("output", { "aria-hidden": "true" });
    const update = () => {
      figure.textContent = shown(input.value);
      input.setAttribute("aria-valuetext", figure.textContent);
    };
    input.addEventListener("input", update);
    input.refresh = update;
    update();
    row.append(figure);
  }
  return { row, input };
}

export const percent = (share, digits = 0) => `${(100 * share).toFixed(digits)}%`;

/* A probability in words: what is not quite 0 or 1 is not called so. */
export function chance_of(share) {
  if (share > 0 && share < 0.0005) return "under 0.1%";
  return share < 1 && share >= 0.9995 ? "over 99.9%" : percent(share, 1);
}

/* Colours mixed by their shares, as in tilelli_nb/notebook/controls.py. */
export function mixture(shares, colours) {
  const channel = (at) => {
    const parts = colours.map((colour, i) => shares[i] * parseInt(colour.slice(at, at + 2), 16));
    const value = Math.min(Math.round(parts.reduce((a, b) => a + b)), 255);
    return value.toString(16).padStart(2, "0");
  };
  return `#${channel(1)}${channel(3)}${channel(5)}`;
}

/* A ground for a byte of this probability: white at 1, redder with each bit of surprise. */
export function ground(chance) {
  const surprise = Math.min(-Math.log2(Math.max(chance, 1e-9)) / 10, 0.6);
  return mixture([1 - surprise, surprise], [PAPER, RED]);
}

/* What a label calls a byte. */
export function byte_name(byte) {
  const names = { 0: "byte 0 (the end)", 10: "line break", 32: "space" };
  if (byte in names) return names[byte];
  return byte > 32 && byte < 127 ? String.fromCharCode(byte) : `byte ${byte}`;
}

/* The mean of the blocks' shares: p (blocks x 3, flat) -> [conv, attention, ffn]. */
export function mean_shares(p) {
  const sums = [0, 0, 0];
  for (let i = 0; i < p.length; i++) sums[i % 3] += (3 * p[i]) / p.length;
  return sums;
}

export const encode = (text) => [...new TextEncoder().encode(text)];

export const WINDOW = 256; // bytes that a model of the book sees

/* The bytes of a text with one element for each character, which comes with its last byte.
   show() puts what was added into the page, all at once: the theme's icons look through the whole
   text whenever something is put into it. */
export class ByteText {
  constructor(place) {
    this.place = place;
    this.clear();
  }

  clear() {
    this.place.replaceChildren();
    this.fresh = document.createDocumentFragment();
    this.decoder = new TextDecoder();
    this.bytes = [];
    this.spans = []; // of each byte, the element of its character
  }

  /* Adds one byte, and returns the element of the character that it completes, or null. */
  add(byte) {
    this.bytes.push(byte);
    const piece = this.decoder.decode(new Uint8Array([byte]), { stream: true });
    if (piece === "") return null;
    const span = element("span", {}, piece);
    while (this.spans.length < this.bytes.length) this.spans.push(span);
    this.fresh.append(span);
    return span;
  }

  /* Adds bytes that nobody will ask about, in one element, which it returns. */
  add_together(bytes) {
    const span = element("span", {}, this.decoder.decode(new Uint8Array(bytes), { stream: true }));
    for (const byte of bytes) {
      this.bytes.push(byte);
      this.spans.push(span);
    }
    this.fresh.append(span);
    return span;
  }

  show() {
    this.place.append(this.fresh);
  }
}

/* A legend: each pathway in its colour, with its average share. */
export function legend(shares, line = false) {
  const parts = PATHWAYS.map((name, i) => element("span", {
    class: "live-chip",
    style: line ? `border-bottom: 4px solid ${COLOURS[i]}` : `background: ${COLOURS[i]}`,
  }, `${name} ${percent(shares[i])}`));
  return parts.flatMap((part) => [part, " "]);
}

/* A button that is disabled loses the keyboard's place. Call this before a job disables `go`; what
   it returns gives the place back after the job, unless the reader has gone elsewhere. */
export function keep_place(go, halt) {
  const was_here = document.activeElement === go;
  return () => {
    const now = document.activeElement;
    if (now === halt || (was_here && now === document.body)) go.focus({ preventScroll: true });
  };
}

/* A line that says what the model does now: progress, speed, or what went wrong. */
export function status_line() {
  const bar = element("progress", { max: 1, "aria-label": "loading the weights", hidden: "" });
  const words = element("span", { role: "status" });
  const figures = element("span"); // they change too often to be read out
  const line = element("p", { class: "live-status" }, bar, " ", words, " ", figures);
  return {
    line,
    say(text, is_error = false) {
      bar.hidden = true;
      words.textContent = text;
      figures.textContent = "";
      line.classList.toggle("live-error", is_error);
    },
    count(text) {
      words.textContent = "";
      figures.textContent = text;
    },
    wait() {
      this.say("Another widget is at work: this one begins when it is done …");
    },
    /* A share from 0 to 1 of a model's file; null when it is there. */
    progress(model, share) {
      const text = `Fetching ${model.name}, ${megabytes(model)}, once …`;
      if (share !== null && words.textContent !== text) this.say(text);
      bar.hidden = share === null;
      bar.value = share ?? 1;
    },
  };
}

export const megabytes = ({ bytes }) => `${(bytes / 1e6).toFixed(1)} MB`;

/* A seed that is a whole number from 0 on, whatever was typed. */
export const seed_of = (text) => Math.min(Math.max(Math.floor(Number(text)) || 0, 0),
  Number.MAX_SAFE_INTEGER);
