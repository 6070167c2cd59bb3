/* A text box, some settings and two buttons: the model writes on, and one sees it write. The
   chapters and the page "Talk to it here" share it. */

import { stop, write } from "./model.js";
import { ByteText, COLOURS, element, encode, ground, keep_place, legend, mean_shares, mixture, percent,
  status_line, WINDOW } from "./view.js";

/* Shows of each new byte how probable it was (ground) and what carried it (line). */
export class Written {
  constructor() {
    this.head = element("p", { class: "live-legend" });
    this.body = element("p", { class: "live-text" });
    this.box = element("div", { class: "live-paper" }, this.head, this.body);
    this.text = new ByteText(this.body);
    this.clear([]);
  }

  clear(prompt) {
    this.text.clear();
    this.prompt_length = prompt.length;
    this.records = [];
    this.totals = [0, 0, 0];
    const unseen = Math.max(prompt.length - WINDOW, 0); // bytes that the model does not read
    if (unseen) this.text.add_together(prompt.slice(0, unseen)).classList.add("live-prompt");
    for (const byte of prompt.slice(unseen)) this.text.add(byte)?.classList.add("live-prompt");
    this.text.show();
    this.show_legend();
  }

  add(record) {
    const shares = mean_shares(record.p);
    shares.forEach((share, i) => { this.totals[i] += share; });
    this.records.push(record);
    const span = this.text.add(record.byte);
    if (!span) return;
    span.dataset.byte = this.records.length - 1;
    this.dress(span, record, shares);
  }

  dress(span, record, shares) {
    span.style.background = ground(record.chance);
    span.style.borderBottom = `4px solid ${mixture(shares, COLOURS)}`;
  }

  show_legend() {
    const scale = [1, 0.5, 0.1, 0.01].flatMap((chance) => [
      element("span", { class: "live-chip", style: `background: ${ground(chance)}` }, percent(chance)), " "]);
    const count = Math.max(this.records.length, 1);
    this.head.replaceChildren("Ground, how probable a byte was: ", ...scale, element("br"),
      "Line, what carried it, on average: ", ...legend(this.totals.map((t) => t / count), true));
  }
}

export const speed = (count, seconds) => (seconds > 0.05 && count > 1
  ? `${count} new bytes, ${Math.round((count - 1) / seconds)} a second`
  : `${count} new bytes`);

/* Connects two buttons and a text: settings() gives { model, prompt, sampling }. Returns the
   parts, and calls `seen(record)` for each byte and `finished(sampling)` at the end. */
export function writer(written, settings, { seen = () => {}, finished = () => {}, name = "Continue" } = {}) {
  const status = status_line();
  const go = element("button", { type: "button", class: "live-button" }, name);
  const halt = element("button", { type: "button", class: "live-button", disabled: "" }, "Stop");
  const listener = element("p", { class: "visually-hidden", "aria-live": "polite" });

  async function run() {
    const { model, prompt, sampling } = settings();
    const ids = encode(prompt);
    const give_back = keep_place(go, halt);
    go.disabled = true;
    status.say("");
    listener.textContent = "";
    const take = ({ records, seconds }) => {
      for (const record of records) {
        written.add(record);
        seen(record);
      }
      written.text.show();
      status.count(speed(written.records.length, seconds));
    };
    written.clear(ids);
    try {
      const end = await write(model, ids, sampling, {
        wait: () => status.wait(),
        progress(share) {
          status.progress(model, share);
          if (share !== null) return;
          halt.disabled = false;
          status.say("Reading the prompt …");
        },
        part: take,
      });
      take(end);
      written.show_legend();
      const how = end.stopped ? "Stopped: " : end.count < sampling.max_new ? "The text ended: " : "";
      status.say(how + speed(end.count, end.seconds));
      const bytes = written.records.map(({ byte }) => byte);
      listener.textContent = new TextDecoder().decode(new Uint8Array(bytes));
      finished(sampling);
    } catch (error) {
      status.say(error.message, true);
    }
    go.disabled = false;
    give_back();
    halt.disabled = true;
  }

  go.addEventListener("click", run);
  halt.addEventListener("click", stop);
  const buttons = element("div", { class: "live-buttons" }, go, halt);
  return { buttons, status, listener, go, halt };
}
