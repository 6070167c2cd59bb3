/* The page's side of the worker: what the widgets call. */

const HERE = new URL(".", import.meta.url);
const MODELS = new URL("../models/", HERE);

/* The models that came with the site. Raises an Error whose message is for the reader. */
export async function model_list() {
  try {
    const answer = await fetch(new URL("models.json", MODELS), { cache: "no-cache" });
    return (await answer.json()).models;
  } catch {
    throw new Error("The list of models (models.json) could not be read. Build the site again "
      + "with `make book`, and reload the page.");
  }
}

let worker = null;
let number = 0;
const waiting = new Map(); // number of a request -> who hears its messages

function start_worker() {
  worker = new Worker(new URL("worker.js", HERE), { type: "module" });
  worker.onmessage = ({ data }) => {
    const { resolve, reject, hear } = waiting.get(data.id);
    if (data.error) reject(new Error(data.error));
    else if (data.done) resolve(data.done);
    else hear(data);
    if (data.error || data.done) waiting.delete(data.id);
  };
  worker.onerror = () => { // its file is missing or does not run here
    for (const { reject } of waiting.values()) {
      reject(new Error("The engine could not be started. Check the connection and reload the "
        + "page; it needs a browser of 2023 or later."));
    }
    waiting.clear();
    worker = null;
  };
}

function request(task, request, hear = () => {}) {
  if (!worker) start_worker();
  const id = ++number;
  return new Promise((resolve, reject) => {
    waiting.set(id, { resolve, reject, hear });
    worker.postMessage({ id, task, request });
  });
}

let turn = Promise.resolve(); // the worker does one thing at a time

/* Runs `job` when all that was begun before is over. */
function after_the_others(job) {
  const mine = turn.then(job, job);
  turn = mine.catch(() => {});
  return mine;
}

let running = 0; // jobs that are not over

/* Loads `model` if it is not there, then does the task. `on.wait` hears that others come first,
   `on.progress` shares from 0 to 1, `on.part` what comes in parts. */
function with_model(model, task, details, on = {}) {
  if (running > 0) on.wait?.();
  running += 1;
  return after_the_others(async () => {
    const where = { model, models: MODELS.href };
    await request("load", where, ({ progress }) => on.progress?.(progress));
    on.progress?.(null);
    return request(task, details, (part) => on.part?.(part));
  }).finally(() => { running -= 1; });
}

export const write = (model, ids, sampling, on) => with_model(model, "write", { ids, sampling }, on);
export const read = (model, ids, on) => with_model(model, "read", { ids }, on);
export const ask = (model, details, on) => with_model(model, "ask", details, on);

/* Ends what is being written; its promise then resolves with what there is. */
export function stop() {
  worker?.postMessage({ task: "stop" });
}
