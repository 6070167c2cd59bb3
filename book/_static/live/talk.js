/* The page "Talk to it here": write, look at every byte, ask why it came. */

import { start_chat } from "./chat_view.js";
import { model_list } from "./model.js";
import { byte_name, chance_of, COLOURS, control, element, legend, mean_shares, megabytes, PATHWAYS, percent, seed_of,
  status_line } from "./view.js";
import { writer, Written } from "./writer.js";

const BEGINNING = "Once upon a time there was a little ";

export async function start(place) {
  try {
    const models = await model_list();
    const write = write_panel(models.filter(({ chat }) => !chat));
    const talkers = models.filter(({ chat }) => chat);
    if (talkers.length) place.replaceChildren(...tabs({ Write: write, Chat: chat_panel(talkers) }));
    else place.replaceChildren(write);
  } catch (error) {
    const status = status_line();
    status.say(error.message, true);
    place.replaceChildren(status.line);
  }
}

/* Tabs by name, with the keys of the ARIA pattern: left and right, Home and End. */
function tabs(panels) {
  const list = element("div", { role: "tablist", "aria-label": "What to do with it", class: "live-tabs" });
  const buttons = Object.entries(panels).map(([name, panel]) => {
    Object.entries({ id: `panel-${name}`, role: "tabpanel", "aria-labelledby": `tab-${name}` })
      .forEach(([key, value]) => panel.setAttribute(key, value));
    return element("button", { type: "button", role: "tab", id: `tab-${name}`, "aria-controls": `panel-${name}` }, name);
  });
  const choose = (i) => buttons.forEach((button, j) => {
    button.setAttribute("aria-selected", String(i === j));
    button.tabIndex = i === j ? 0 : -1;
    Object.values(panels)[j].hidden = i !== j;
  });
  buttons.forEach((button, i) => button.addEventListener("click", () => choose(i)));
  list.addEventListener("keydown", (event) => {
    const now = buttons.indexOf(document.activeElement), last = buttons.length - 1;
    const next = { ArrowRight: now === last ? 0 : now + 1, ArrowLeft: now === 0 ? last : now - 1, Home: 0, End: last }[event.key];
    if (next === undefined) return;
    event.preventDefault(); // Home and End would also scroll the page
    choose(next);
    buttons[next].focus();
  });
  list.append(...buttons);
  choose(0);
  return [list, ...Object.values(panels)];
}

function picker(models) {
  const options = models.map((model, i) => element("option", { value: i }, `${model.name} (${megabytes(model)})`));
  const { row, input } = control("Model:", "select", {}, null, ...options);
  return { row, input, chosen: () => models[input.value] };
}

function chat_panel(models) {
  const models_row = picker(models);
  const box = element("div");
  const panel = element("div", {}, models_row.row, box);
  models_row.input.addEventListener("input", start_chat(box, models_row.chosen));
  return panel;
}

function write_panel(models) {
  const model = picker(models);
  const prompt = control("Beginning:", "textarea", { rows: 2 }, null, BEGINNING);
  const slider = (label, min, max, step, value, shown) => (
    control(label, "input", { type: "range", min, max, step, value }, shown));
  const heat = slider("Temperature:", 0, 1.5, 0.05, model.chosen().temperature,
    (text) => (Number(text) === 0 ? "0, greedy" : Number(text).toFixed(2)));
  const top_k = slider("top-k:", 1, 256, 1, 256, (text) => (text === "256" ? "all" : text));
  const top_p = slider("top-p:", 0.01, 1, 0.01, 1, (text) => (Number(text) === 1 ? "all" : Number(text).toFixed(2)));
  const seed = control("Seed:", "input", { type: "number", min: 0, step: 1, value: 0 });
  const length = slider("Bytes at most:", 50, 2000, 50, 400, (text) => text);
  model.input.addEventListener("input", () => {
    heat.input.value = model.chosen().temperature;
    heat.input.refresh();
  });

  const written = new Written();
  const why = why_panel(written);
  const settings = () => {
    seed.input.value = seed_of(seed.input.value); // the one that is used stands in its field
    return {
      model: model.chosen(),
      prompt: prompt.input.value,
      sampling: {
        temperature: Number(heat.input.value), top_k: Number(top_k.input.value), top_p: Number(top_p.input.value),
        max_new: Number(length.input.value), seed: Number(seed.input.value),
      },
    };
  };
  const { buttons, status, listener, go } = writer(written, settings, {
    name: "Write", seen: why.follow, finished: why.settle });
  go.addEventListener("click", why.clear);
  written.body.addEventListener("click", ({ target }) => {
    if (target.dataset.byte) why.choose(Number(target.dataset.byte));
  });
  return element("div", {}, prompt.row,
    element("div", { class: "live-settings" }, model.row, heat.row, top_k.row, top_p.row, seed.row, length.row),
    buttons, status.line, listener, written.box, why.panel);
}

/* What the model had to choose from at one byte, and what it looked at. */
function why_panel(written) {
  const which = control("Byte:", "input", { type: "range", min: 1, max: 1, step: 1, value: 1, disabled: "" },
    (value) => title(Number(value) - 1));
  const block = control("Block:", "select", { disabled: "" }, null, element("option", { value: "all" }, "all"));
  const body = element("div");
  const panel = element("section", { class: "live-why", "aria-labelledby": "why-title", hidden: "" },
    element("h2", { id: "why-title" }, "Why this byte?"), which.row, block.row, body);
  const at = () => Number(which.input.value) - 1;
  let is_writing = false;
  let due = false; // while it writes, some pictures a second are all that an eye can follow
  let marked = []; // the elements of the text that carry a frame

  function title(index) {
    const record = written.records[index];
    return record ? `${index + 1} of ${written.records.length}: ${byte_name(record.byte)}` : "";
  }

  function clear() {
    is_writing = true;
    panel.hidden = true;
    body.replaceChildren();
  }

  /* While it writes, the panel follows the latest byte. */
  function follow() {
    if (due) return;
    due = true;
    setTimeout(() => {
      due = false;
      if (is_writing && written.records.length) choose(written.records.length - 1);
    }, 150);
  }

  function settle() {
    is_writing = false;
    if (written.records.length) choose(written.records.length - 1);
  }

  function choose(index) {
    const record = written.records[index];
    panel.hidden = false;
    which.input.disabled = block.input.disabled = false;
    which.input.max = written.records.length;
    which.input.value = index + 1;
    which.input.refresh();
    const count = record.p.length / 3;
    if (block.input.options.length !== count + 1) {
      block.input.replaceChildren(element("option", { value: "all" }, "all"),
        ...Array.from({ length: count }, (_, i) => element("option", { value: i }, String(i + 1))));
    }
    draw(record);
  }

  function draw(record) {
    const looked = is_writing ? null : looked_at(record);
    mark(record, looked);
    body.replaceChildren(candidates(record), pathways(record));
    if (looked) body.append(kept_words(record, looked));
  }

  /* The weights of the places that were kept, averaged over the heads of the chosen block, or of
     all: place -> weight. */
  function looked_at({ places, weights, p }) {
    const blocks = p.length / 3, of_block = places.length / blocks;
    const one = block.input.value === "all" ? null : Number(block.input.value);
    const looked = new Map();
    places.forEach((place, i) => {
      const here = Math.floor(i / of_block);
      if (place < 0 || (one !== null && here !== one)) return;
      looked.set(place, (looked.get(place) ?? 0) + weights[i]);
    });
    const sum = [...looked.values()].reduce((a, b) => a + b, 0);
    for (const [place, weight] of looked) looked.set(place, weight / sum);
    return looked;
  }

  /* Marks in the text the byte itself, and by a frame what was kept: thicker for more weight. */
  function mark(record, looked) {
    const { spans } = written.text;
    for (const span of marked) {
      span.style.boxShadow = "";
      span.classList.remove("live-chosen");
    }
    marked = [];
    if (!looked) return;
    const strongest = Math.max(...looked.values());
    for (const [place, weight] of looked) {
      const ink = (0.12 + 0.88 * weight / strongest).toFixed(2);
      const width = weight > strongest / 2 ? 3 : weight > strongest / 8 ? 2 : 1;
      if (!spans[place]) continue; // the byte 0 before an empty beginning
      spans[place].style.boxShadow = `inset 0 0 0 ${width}px rgba(34, 34, 34, ${ink})`;
      marked.push(spans[place]);
    }
    const chosen = spans[written.prompt_length + written.records.indexOf(record)];
    if (!chosen) return; // the beginning of a character that never came to its end
    chosen.classList.add("live-chosen");
    marked.push(chosen);
  }

  function candidates(record) {
    const row = ([byte, share]) => element("tr", byte === record.byte ? { class: "live-drawn" } : {},
      element("th", { scope: "row" }, byte_name(byte), byte === record.byte ? " (drawn)" : ""),
      element("td", { class: "live-track" }, element("span", { class: "live-bar", style: `width: ${percent(share, 2)}; background: #0072B2` })),
      element("td", {}, chance_of(share)));
    const [first, second] = record.likeliest;
    const drawn = record.likeliest.some(([byte]) => byte === record.byte) ? [] : [[record.byte, record.chance]];
    const rival = record.byte === first[0] ? second : first;
    return element("div", {},
      element("p", {}, `The model gave it ${chance_of(record.chance)}. The runner-up: ${byte_name(rival[0])}, ${chance_of(rival[1])}.`),
      element("table", { class: "live-bars" }, element("caption", {}, "The five most likely next bytes"),
        element("tbody", {}, ...[...record.likeliest, ...drawn].map(row))));
  }

  function pathways({ p }) {
    const rows = [];
    for (let b = 0; 3 * b < p.length; b++) {
      const shares = [...p.slice(3 * b, 3 * b + 3)];
      rows.push(element("tr", {}, element("th", { scope: "row" }, `block ${b + 1}`),
        element("td", { class: "live-track live-mix" }, ...shares.map((share, i) => element("span", {
          class: "live-part", style: `width: ${percent(share, 2)}; background: ${COLOURS[i]}` }))),
        ...shares.map((share) => element("td", {}, percent(share)))));
    }
    return element("div", {}, element("p", {}, "What carried it, on average over the blocks: ", ...legend(mean_shares(p))),
      element("table", { class: "live-bars" }, element("caption", {}, "The router's weights in each block"),
        element("thead", {}, element("tr", {}, element("td"), element("td"),
          ...PATHWAYS.map((name) => element("th", { scope: "col" }, name)))),
        element("tbody", {}, ...rows)));
  }

  function kept_words({ first, keep }, looked) {
    if (!looked.size) return element("p", {}, "The attention saw no byte of a text: there was none before this one.");
    const strongest = [...looked].sort((a, b) => b[1] - a[1]).slice(0, 3).filter(([place]) => place >= 0);
    const words = strongest.map(([place, weight]) => `“${around(place)}” (${percent(weight)})`);
    const unseen = first > 0 ? ` The first ${first} bytes had left the window.` : "";
    return element("p", {}, `Framed in the text: what the attention kept, ${looked.size} places of all heads together `
      + `(each head keeps up to ${keep}). Most weight lay on ${words.join(", ")}.${unseen}`);
  }

  /* A few characters around a place, the one in question between bars. */
  function around(place) {
    const { bytes } = written.text;
    const text = (from, to) => new TextDecoder().decode(new Uint8Array(bytes.slice(Math.max(from, 0), to))).replace(/\s+/g, " ");
    return `${text(place - 6, place)}|${text(place, place + 1)}|${text(place + 1, place + 4)}`;
  }

  which.input.addEventListener("input", () => choose(at()));
  block.input.addEventListener("input", () => choose(at()));
  return { panel, follow, settle, clear, choose };
}
