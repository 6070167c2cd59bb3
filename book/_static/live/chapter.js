/* The widgets of the chapters, alive: the same controls as in JupyterLab, made from the state that
   the notebook carries, with the model of this page behind them. No weights are fetched before a
   reader uses one. */

import { probabilities } from "./engine.js";
import { model_list, read } from "./model.js";
import { start_chat } from "./chat_view.js";
import { byte_name, ByteText, chance_of, COLOURS, control, element, encode, GREY, legend, megabytes, mixture,
  percent, RED, status_line, WINDOW } from "./view.js";
import { writer, Written } from "./writer.js";

const MODEL = "nano"; // the one that the chapters use

export async function start(places) {
  const states = saved_states();
  let models;
  try {
    models = await model_list();
  } catch (error) {
    for (const { box } of places) {
      const status = status_line();
      status.say(error.message, true);
      box.replaceChildren(status.line);
    }
    return;
  }
  for (const place of places) {
    const talks = models.find(({ chat }) => chat);
    const model = place.kind === "chat_box" ? talks : models.find(({ name }) => name === MODEL);
    place.controls = controls_of(states, place.id);
    // what Python has drawn stays until the model of this page has something to show
    place.still = [];
    for (let next = place.box.nextElementSibling; next; next = next.nextElementSibling) place.still.push(next);
    place.box.classList.add("live");
    place.box.dataset.live = place.kind;
    WIDGETS[place.kind](place, model ?? models[0]);
  }
}

/* The widgets' values when the notebook was saved: id -> { model_name, state }. */
function saved_states() {
  const saved = document.querySelector('script[type="application/vnd.jupyter.widget-state+json"]');
  return saved ? JSON.parse(saved.textContent).state : {};
}

/* The state of each control in a widget, by its kind: Text, FloatSlider, IntSlider, Dropdown. */
function controls_of(states, id) {
  const { model_name, state } = states[id];
  if (!state.children) return [{ kind: model_name.replace("Model", ""), ...state }];
  return state.children.flatMap((child) => controls_of(states, child.replace("IPY_MODEL_", "")));
}

const of_kind = (place, kind) => place.controls.find((control) => control.kind === kind);

function replace_still(place, ...fresh) {
  for (const picture of place.still) picture.remove();
  place.still = fresh;
  place.box.append(...fresh);
}

/* A slider like one of JupyterLab's. */
function slider_like({ description, min, max, step, value }) {
  const digits = step < 1 ? 2 : 0;
  const attributes = { type: "range", min, max, step, value };
  return control(description, "input", attributes, (text) => Number(text).toFixed(digits));
}

/* A whole number in the code of the cell, such as max_new=240. */
function argument(code, name, otherwise) {
  return Number(code.match(new RegExp(`${name}\\s*=\\s*(\\d+)`))?.[1] ?? otherwise);
}

function about(model) {
  return element("p", { class: "live-note" },
    `Live: ${model.name} runs in this page. The first use fetches its ${megabytes(model)}.`);
}

/* Chapters 00 and 13: a prompt, a temperature, and the model goes on. */
function continue_text(place, model) {
  const saved = of_kind(place, "Text");
  const prompt = control(saved.description, "input", { type: "text", value: saved.value });
  const heat = slider_like(of_kind(place, "FloatSlider"));
  let seed = argument(place.code, "seed", 0);
  const max_new = argument(place.code, "max_new", 240);
  const written = new Written();
  if (place.kind === "continue_text") {
    written.dress = () => {}; // chapter 00 knows neither surprise nor pathways yet
    written.show_legend = () => {};
    written.head.hidden = true;
  }
  const said = element("p", { class: "live-note" });
  const settings = () => {
    seed += 1; // each press takes the next, as in JupyterLab
    if (place.still[0] !== written.box) replace_still(place, written.box, said);
    said.textContent = "";
    const temperature = Number(heat.input.value);
    return { model, prompt: prompt.input.value, sampling: { max_new, temperature, seed } };
  };
  const finished = ({ temperature }) => {
    said.textContent = `Temperature ${temperature}, seed ${seed}. The page draws its random numbers another way than `
      + "PyTorch, so JupyterLab writes another text for the same seed.";
  };
  const { buttons, status, listener } = writer(written, settings, { finished });
  place.box.append(about(model), prompt.row, heat.row, buttons, status.line, listener);
}

/* Chapter 07: each byte on the mixture of the pathways' colours, of one block. */
function routed_text(place, model) {
  const passage = place.still.at(-1)?.querySelector("p:last-of-type")?.textContent ?? "";
  const saved = of_kind(place, "Dropdown");
  const options = saved._options_labels.map((label, i) => (
    element("option", { value: i, ...(i === saved.index ? { selected: "" } : {}) }, label)));
  const block = control(saved.description, "select", {}, null, ...options);
  const text = control("Text:", "textarea", { rows: 3, maxlength: 256 }, null, passage);
  const status = status_line();
  const head = element("p", { class: "live-legend" }), body = element("p", { class: "live-text" });
  const paper = element("div", { class: "live-paper" }, head, body);
  const run = latest_only(async () => {
    const whole = encode(text.input.value);
    const ids = whole.slice(0, WINDOW);
    if (!ids.length) {
      status.say("There is no text: type one.");
      return;
    }
    const { p } = await read(model, ids, heard_by(status, model));
    status.say(whole.length > WINDOW ? `The first ${WINDOW} bytes: the model sees no more at once.` : "");
    const shares = p.slice(0, ids.length).map((blocks) => blocks[block.input.value]);
    const shown = new ByteText(body);
    ids.forEach((byte, t) => {
      const span = shown.add(byte);
      if (span) span.style.background = mixture(shares[t], COLOURS);
    });
    const means = [0, 1, 2].map((i) => shares.reduce((sum, p) => sum + p[i] / shares.length, 0));
    shown.show();
    head.replaceChildren(element("b", {}, `Block ${Number(block.input.value) + 1}`), ", on average: ",
      ...legend(means));
    if (place.still[0] !== paper) replace_still(place, paper);
  }, status);
  block.input.addEventListener("input", run);
  text.input.addEventListener("input", run);
  place.box.append(about(model), block.row, text.row, status.line);
}

/* Chapter 13: what temperature, top-k and top-p make of the next byte. */
function sampling_player(place, model) {
  const begin = place.code.match(/encode\("([^"]*)"\)/)?.[1] ?? "";
  const prompt = control("Prompt:", "input", { type: "text", value: begin });
  const sliders = place.controls.filter(({ kind }) => kind.endsWith("Slider")).map(slider_like);
  const [heat, number, share] = sliders;
  const status = status_line();
  const shown = element("div", { class: "live-paper" });
  let known = null; // the prompt whose logits are here
  let logits = null;
  const run = latest_only(async () => {
    if (known !== prompt.input.value) {
      const text = prompt.input.value;
      ({ logits } = await read(model, encode(text), heard_by(status, model)));
      known = text;
      status.say("");
    }
    const sampling = { temperature: Number(heat.input.value), top_k: Number(number.input.value),
      top_p: Number(share.input.value) };
    shown.replaceChildren(...sampling_bars(logits, sampling));
    if (place.still[0] !== shown) replace_still(place, shown);
  }, status);
  for (const { input } of [prompt, ...sliders]) input.addEventListener("input", run);
  place.box.append(about(model), prompt.row, ...sliders.map(({ row }) => row), status.line);
}

/* For the most probable bytes, what the model believes in grey and how often each is drawn in red. */
function sampling_bars(logits, sampling, rows = 12) {
  const believed = probabilities(logits, { temperature: 1 });
  const drawn = probabilities(logits, sampling);
  const order = [...believed.keys()].sort((a, b) => believed[b] - believed[a]).slice(0, rows);
  const bar = (share, colour) => element("span", { class: "live-bar",
    style: `width: ${percent(share, 2)}; background: ${colour}` });
  const table = element("table", { class: "live-bars" },
    element("caption", {}, "The most probable next bytes. Grey: what the model believes. Red: how often it is drawn."),
    element("thead", {}, element("tr", {}, ...["byte", "", "believed", "drawn"].map((head) => (
      head ? element("th", { scope: "col" }, head) : element("td"))))),
    element("tbody", {}, ...order.map((byte) => element("tr", {},
      element("th", { scope: "row" }, byte_name(byte)),
      element("td", { class: "live-track" }, bar(believed[byte], GREY), bar(drawn[byte], RED)),
      element("td", {}, chance_of(believed[byte])),
      element("td", {}, drawn[byte] > 0 ? chance_of(drawn[byte]) : "never")))));
  const possible = drawn.filter((share) => share > 0);
  const bits = possible.reduce((sum, share) => sum - share * Math.log2(share), 0);
  return [table, element("p", {},
    `${possible.length} of 256 bytes can be drawn, and a draw is worth ${bits.toFixed(2)} bits.`)];
}

/* Chapter 11: a conversation. */
function chat_box(place, model) {
  if (!model.chat) {
    place.box.append(element("p", { class: "live-note" },
      "A still picture: this site came without a model that answers. make lab opens it."));
    return;
  }
  start_chat(place.box, () => model);
}

const heard_by = (status, model) => ({
  wait: () => status.wait(),
  progress: (share) => status.progress(model, share),
});

/* Wraps a job that is asked for at each turn of a slider: while it runs, only the last request
   waits. What goes wrong stands in the status line. */
function latest_only(job, status) {
  let running = false, again = false;
  return async function run() {
    if (running) {
      again = true;
      return;
    }
    running = true;
    do {
      again = false;
      try {
        await job();
      } catch (error) {
        status.say(error.message, true);
      }
    } while (again);
    running = false;
  };
}

const WIDGETS = { continue_text, stream_text: continue_text, routed_text, sampling_player, chat_box };
