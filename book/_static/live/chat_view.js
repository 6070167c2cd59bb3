/* A conversation on the page: questions, answers, and how sure the model was of each. */

import { ask, stop } from "./model.js";
import { REFUSAL } from "./chat.js";
import { control, element, keep_place, status_line } from "./view.js";

/* Builds the conversation in `place`; model() is the one that is chosen now. Returns what to do when
   another one was chosen. */
export function start_chat(place, model) {
  const question = control("Your question:", "input", { type: "text", value: "", autocomplete: "off" });
  const heat = control("Temperature:", "input",
    { type: "range", min: 0, max: 1.5, step: 0.05, value: 0 }, (text) => Number(text).toFixed(2));
  const least = control("“I don't know” below:", "input",
    { type: "range", min: 0, max: 1, step: 0.01, value: 0 },
    (text) => (Number(text) === 0 ? "never" : Number(text).toFixed(2)));
  const go = element("button", { type: "submit", class: "live-button" }, "Ask");
  const halt = element("button", { type: "button", class: "live-button", disabled: "", onclick: stop }, "Stop");
  const forget = element("button", { type: "button", class: "live-button" }, "Forget");
  const log = element("div", { class: "live-paper live-log", role: "log", "aria-label": "The conversation", tabindex: 0 });
  const status = status_line();
  let history = [], seed = 0;
  let is_moved = false; // the slider: until it is, the model's own threshold counts, which is finer

  async function run(event) {
    event.preventDefault();
    const asked = question.input.value;
    const answer = element("span"), about = element("small");
    const turn = element("p", {}, element("b", {}, "USER: "), asked, element("br"),
      element("b", {}, "TILELLI: "), answer, " ", about);
    turn.setAttribute("aria-busy", "true"); // a screen reader waits for the whole answer
    log.append(turn);
    question.input.value = "";
    const give_back = keep_place(go, halt);
    go.disabled = true;
    const { gate } = model(), before = history;
    const threshold = is_moved ? Number(least.input.value) : gate?.threshold ?? 0;
    const details = { question: asked, history, temperature: Number(heat.input.value), seed: seed++,
      gate: threshold > 0 ? { signal: gate?.signal ?? "margin", threshold } : null };
    const decoder = new TextDecoder();
    const chosen = model();
    try {
      const { reply } = await ask(chosen, details, {
        wait: () => status.wait(),
        progress(share) {
          status.progress(chosen, share);
          if (share !== null) return;
          halt.disabled = false;
          status.say("Thinking …");
        },
        part({ bytes }) {
          answer.append(decoder.decode(new Uint8Array(bytes), { stream: true }));
          log.scrollTop = log.scrollHeight;
        },
      });
      status.say(reply ? "" : "Stopped.");
      if (reply) finish(reply, answer, about);
      // forgotten meanwhile, it stays forgotten; stopped before anything was said, it is no turn
      if (history === before && (reply || answer.textContent)) history = [...before, [asked, answer.textContent]];
    } catch (error) {
      status.say(error.message, true);
      turn.remove(); // nobody answered: the question can be asked again
      question.input.value ||= asked;
    }
    turn.setAttribute("aria-busy", "false");
    go.disabled = false;
    give_back();
    halt.disabled = true;
    log.scrollTop = log.scrollHeight;
  }

  function finish(reply, answer, about) {
    answer.textContent = new TextDecoder().decode(new Uint8Array(reply.said));
    const said = [`sure ${reply.sure.toFixed(2)}`, ...reply.notes];
    if (reply.held_back) {
      answer.textContent = REFUSAL;
      // as a stream: half a character at the end is left out
      const held_back = new TextDecoder().decode(new Uint8Array(reply.held_back), { stream: true });
      said.push(`held back: ${held_back}`);
    }
    const bar = element("meter", { min: 0, max: 1, value: reply.sure, "aria-label": "how sure the model was" });
    about.append(bar, " ", said.join("; "));
  }

  function forget_all() {
    history = [];
    log.replaceChildren();
  }

  /* Another model has heard nothing yet, and has a threshold of its own. */
  function begin() {
    forget_all();
    is_moved = false;
    least.input.value = model().gate?.threshold ?? 0;
    least.input.refresh();
  }

  forget.addEventListener("click", forget_all);
  least.input.addEventListener("input", () => { is_moved = true; });
  const form = element("form", { class: "live-form", onsubmit: run }, question.row, heat.row, least.row,
    element("div", { class: "live-buttons" }, go, halt, forget), status.line);
  place.append(log, form);
  begin();
  return begin;
}
