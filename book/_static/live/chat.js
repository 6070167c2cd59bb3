/* A conversation as bytes, and how sure the model was of an answer: the twins of
   tilelli_nb/chat/template.py and tilelli_nb/inference/chatting.py (chapter 11). */

import { stream } from "./engine.js";

const MAX_QUESTION = 160, MAX_PROMPT = 176, MAX_ANSWER = 80;
const END = 0; // the byte that ends an answer
const FIRST = 4; // bytes of an answer that decide
export const REFUSAL = "I don't know.";

// what ends a line, or is a character that one does not see
const BREAKS = /[\u0000-\u001f\u007f-\u009f\u2028\u2029]/g;
// what Python takes for a blank; JavaScript's \s would add U+FEFF
const BLANK = "[\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000]+";
const BLANKS = new RegExp(BLANK, "g");
const AT_THE_ENDS = new RegExp(`^${BLANK}|${BLANK}$`, "g");
// Python's case-blind i and s have more forms than JavaScript's
const ROLE_TAG = /([uU] *[sSſ] *[eE] *[rR]|[tT] *[iIıİ] *[lL] *[eE] *[lL] *[lL] *[iIıİ])( *):/g;

const encode = (text) => [...new TextEncoder().encode(text)];
const strip = (text) => text.replace(AT_THE_ENDS, "");

/* Takes from a text all that could be mistaken for structure. */
export function defuse(text) {
  const notes = [];
  const whole = text.replace(/[\ud800-\udfff]/gu, "\ufffd");
  if (whole !== text) notes.push("characters that are not valid were replaced");
  const trimmed = strip(whole); // blanks at the ends are not worth a note
  const in_line = trimmed.replace(BREAKS, " ");
  const plain = strip(in_line.replace(BLANKS, " "));
  if (in_line !== trimmed) notes.push("line breaks and control characters became spaces");
  else if (plain !== trimmed) notes.push("several blanks, or unusual ones, became a space");
  const safe = plain.replace(ROLE_TAG, "$1$2,");
  if (safe !== plain) notes.push("role tags lost their colon");
  return { text: safe, notes };
}

/* Makes a question fit for the template: at most 160 bytes, from a whole character on. */
export function clean_question(question) {
  let { text, notes } = defuse(question);
  const data = encode(text);
  if (data.length > MAX_QUESTION) {
    let last = data.slice(-MAX_QUESTION);
    while (last[0] >> 6 === 0b10) last = last.slice(1); // the rest of a character
    text = new TextDecoder("utf-8", { ignoreBOM: true }).decode(new Uint8Array(last)).replace(/^ /, "");
    notes = [...notes, `only the last ${MAX_QUESTION} bytes of the question were kept`];
  }
  if (text === "") notes = [...notes, "the question is empty"];
  return { text, notes };
}

export function prompt_bytes(question) {
  return encode(`USER: ${clean_question(question).text}\nTILELLI: `);
}

export function answer_bytes(answer) {
  return [...encode(defuse(answer).text), END];
}

/* What the model reads before it answers. The oldest turns are dropped until it fits. */
export function encode_prompt(question, history = []) {
  let kept = prompt_bytes(question);
  for (const [earlier, answer] of [...history].reverse()) {
    const longer = [...prompt_bytes(earlier), ...answer_bytes(answer), ...kept];
    if (longer.length > MAX_PROMPT) break;
    kept = longer;
  }
  return kept;
}

/* Logits -> the two largest probabilities, before any temperature. */
function top_two(logits) {
  const highest = Math.max(...logits);
  const p = Float64Array.from(logits, (logit) => Math.exp(logit - highest));
  const sum = p.reduce((a, b) => a + b);
  const [second, top] = p.sort().slice(-2);
  return { top: top / sum, second: second / sum };
}

const mean = (values) => values.reduce((a, b) => a + b, 0) / Math.max(values.length, 1);

/* How sure the model was, from the first bytes of what was spoken. */
export const SIGNALS = {
  margin: (spoken) => mean(spoken.slice(0, FIRST).map(({ top, second }) => top - second)),
  max_softmax: (spoken) => mean(spoken.slice(0, FIRST).map(({ top }) => top)),
};

/* Yields the bytes of an answer that may be shown, as Conversation.stream does; nothing while it
   waits. Returns the whole reply. */
export function* converse(lm, { question, history, temperature, seed, gate }) {
  const sampling = { max_new: MAX_ANSWER, temperature, seed, stop: [END], with_stop: true };
  const opens = (spoken) => SIGNALS[gate.signal](spoken) >= gate.threshold;
  const spoken = [];
  let is_open = !gate, waiting = [], held_back = null;
  for (const one of stream(lm, encode_prompt(question, history), sampling)) {
    if (one) {
      spoken.push({ byte: one.byte, ...top_two(one.logits) });
      if (one.byte !== END) waiting.push(one.byte);
      const is_first = spoken.length === FIRST || (one.byte === END && spoken.length < FIRST);
      if (!is_open && is_first) {
        is_open = opens(spoken);
        if (!is_open) break;
      }
    }
    yield is_open ? waiting.splice(0) : [];
  }
  if (!is_open && gate) held_back = spoken.map(({ byte }) => byte).filter((byte) => byte !== END);
  const said = held_back ? encode(REFUSAL) : spoken.map(({ byte }) => byte).filter((b) => b !== END);
  const notes = clean_question(question).notes;
  return { said, held_back, notes, margin: SIGNALS.margin(spoken), count: spoken.length,
    sure: SIGNALS[gate?.signal ?? "margin"](spoken) };
}
