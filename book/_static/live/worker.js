/* The worker: it holds one model and does what the page asks for, so that the page itself never
   waits. Each message carries the number of the request that it answers. */

import { Network, prefill_prompt, stream, CheckpointError } from "./engine.js";
import { converse } from "./chat.js";
import { fetch_model, LoadError } from "./weights.js";

const MILLISECONDS = 30; // between two looks at the messages
let lm = null;
let loaded = null; // the checksum of what lm was made of
let stopped = false;

const channel = new MessageChannel();
/* Lets messages in: after it, `stopped` is what the page wants. */
const look_up = () => new Promise((resolve) => {
  channel.port1.onmessage = resolve;
  channel.port2.postMessage(null);
});

/* Runs a generator to its end, or until the page says stop; hands on what it yields. */
async function drive(steps, report) {
  let last = performance.now();
  for (;;) {
    const { done, value } = steps.next();
    if (done) return value;
    if (value !== undefined) report(value);
    if (performance.now() - last > MILLISECONDS) {
      report(null); // time to send what has come together
      await look_up();
      if (stopped) return undefined;
      last = performance.now();
    }
  }
}

/* The probabilities that the model itself gives: logits (256) -> Float64Array (256). */
function believed(logits) {
  const highest = Math.max(...logits);
  const p = Float64Array.from(logits, (logit) => Math.exp(logit - highest));
  const sum = p.reduce((a, b) => a + b);
  return p.map((share) => share / sum);
}

/* The most probable bytes, [byte, probability] each. */
function likeliest(p, count = 5) {
  const order = [...p.keys()].sort((a, b) => p[b] - p[a]);
  return order.slice(0, count).map((byte) => [byte, p[byte]]);
}

/* What the model did at its latest byte: of each block the router's p, of each head the places
   that it kept (counted from the beginning of the text of n bytes) and their weights. */
function latest(n) {
  const { n_blocks, n_heads, keep } = lm.config.model;
  const first = n - lm.window.length;
  const p = new Float32Array(3 * n_blocks);
  const places = new Int32Array(n_blocks * n_heads * keep).fill(-1);
  const weights = new Float32Array(places.length);
  lm.blocks.forEach(({ router, attention }, b) => {
    p.set(router.p, 3 * b);
    for (let h = 0; h < n_heads; h++) {
      let slot = (b * n_heads + h) * keep;
      const end = slot + keep;
      for (let t = 0; t < lm.window.length && slot < end; t++) {
        const weight = attention.weights[h * attention.context + t];
        if (weight === 0) continue;
        places[slot] = first + t;
        weights[slot] = weight;
        slot += 1;
      }
    }
  });
  return { p, places, weights, first, keep };
}

const TASKS = {
  async load({ model, models }, post) {
    if (loaded === model.sha256) return {};
    lm = loaded = null;
    const buffer = await fetch_model(model, models, (share) => post({ progress: share }));
    lm = new Network(buffer);
    loaded = model.sha256;
    return {};
  },

  /* Writes on: sends records of the new bytes, and at the end what could come next. */
  async write({ ids, sampling }, post) {
    let records = [], count = 0, begun = null;
    await drive(stream(lm, ids, sampling), (value) => {
      if (value) {
        begun ??= performance.now();
        const p = believed(value.logits);
        const { byte } = value;
        records.push({ byte, chance: p[byte], likeliest: likeliest(p), ...latest(ids.length + count) });
        count += 1;
      } else if (records.length) {
        post({ records, seconds: (performance.now() - begun) / 1000 });
        records = [];
      }
    });
    return { records, count, stopped, seconds: begun ? (performance.now() - begun) / 1000 : 0 };
  },

  /* Reads a text: the router's p (blocks x 3) at each byte, and the logits of the next one. */
  async read({ ids }) {
    const p = [];
    const logits = await drive(watched(ids, p), () => {});
    return { p, logits, blocks: lm.config.model.n_blocks };
  },

  async ask(request, post) {
    const reply = await drive(converse(lm, request), (bytes) => {
      if (bytes?.length) post({ bytes });
    });
    return { reply };
  },
};

/* prefill_prompt, which notes the routers' choice at each byte in `p`. */
function* watched(ids, p) {
  const steps = prefill_prompt(lm, ids);
  for (;;) {
    const { done, value } = steps.next();
    if (done) return value;
    p.push(lm.blocks.map((block) => [...block.router.p]));
    yield;
  }
}

self.onmessage = async ({ data: { id, task, request } }) => {
  if (task === "stop") {
    stopped = true;
    return;
  }
  stopped = false;
  const post = (message) => self.postMessage({ id, ...message });
  try {
    post({ done: await TASKS[task](request, post) });
  } catch (error) {
    const known = error instanceof LoadError || error instanceof CheckpointError;
    post({ error: known ? error.message : `The model stopped: ${error.message}` });
  }
};
