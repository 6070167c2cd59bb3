/* A model's file: fetched once, then taken from the browser's cache, and looked at before it is
   used. All that goes wrong becomes one sentence for the reader. */

export class LoadError extends Error {}

/* The bytes of `model` (an entry of models.json) from the folder `models` (a URL that ends in /).
   Calls progress(share) with numbers from 0 to 1. */
export async function fetch_model(model, models, progress) {
  // The address names the content, so what the cache has under it is never out of date.
  const url = new URL(`${model.file}?${model.sha256.slice(0, 16)}`, models);
  let problem;
  for (const cache of ["force-cache", "reload"]) { // where the cache holds something bad: once more
    problem = `The weights of ${model.name} could not be fetched (${model.file}). Check the connection `
      + "and try again; a site of your own, build again with `make book`.";
    progress(0); // a slow connection takes a while to the first byte
    const data = await fetch_bytes(url, model, cache, progress);
    if (data && sha256(data) === model.sha256) return data.buffer;
    if (data) {
      problem = `The weights of ${model.name} arrived damaged: their checksum does not match. Try again; `
        + "a site of your own, build again with `make book`.";
    }
  }
  throw new LoadError(problem);
}

/* The bytes at an address, as many as the model has, or null where they cannot be had. */
async function fetch_bytes(url, { bytes }, cache, progress) {
  try {
    const answer = await fetch(url, { cache });
    if (!answer.ok) return null;
    const data = new Uint8Array(bytes);
    let filled = 0;
    const reader = answer.body.getReader();
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      if (part.value.length > bytes - filled) { // more than there should be: damaged
        await reader.cancel();
        return part.value;
      }
      data.set(part.value, filled);
      filled += part.value.length;
      progress(filled / bytes);
    }
    return data.subarray(0, filled);
  } catch {
    return null;
  }
}

const ROOTS = first_primes(64); // SHA-256 takes its constants from the roots of primes

function first_primes(count) {
  const primes = [];
  for (let n = 2; primes.length < count; n++) if (primes.every((p) => n % p)) primes.push(n);
  return primes;
}

/* The first 32 bits behind the point of a number. */
const fraction = (x) => ((x - Math.floor(x)) * 2 ** 32) | 0;

/* Bytes -> their SHA-256 in hexadecimal (FIPS 180-4). The browser's own exists on https and
   localhost only; this one works wherever the page does. */
export function sha256(data) {
  const hash = Int32Array.from(ROOTS.slice(0, 8), (p) => fraction(Math.sqrt(p)));
  const constants = Int32Array.from(ROOTS, (p) => fraction(Math.cbrt(p)));
  const padded = new Uint8Array(Math.ceil((data.length + 9) / 64) * 64);
  padded.set(data);
  padded[data.length] = 0x80;
  const view = new DataView(padded.buffer);
  view.setBigUint64(padded.length - 8, BigInt(data.length) * 8n);
  const turn = (x, n) => (x >>> n) | (x << (32 - n));
  const w = new Int32Array(64);
  for (let block = 0; block < padded.length; block += 64) {
    for (let i = 0; i < 16; i++) w[i] = view.getInt32(block + 4 * i);
    for (let i = 16; i < 64; i++) {
      const [early, late] = [w[i - 15], w[i - 2]];
      const s0 = turn(early, 7) ^ turn(early, 18) ^ (early >>> 3);
      const s1 = turn(late, 17) ^ turn(late, 19) ^ (late >>> 10);
      w[i] = w[i - 16] + s0 + w[i - 7] + s1;
    }
    let [a, b, c, d, e, f, g, h] = hash;
    for (let i = 0; i < 64; i++) {
      const s1 = turn(e, 6) ^ turn(e, 11) ^ turn(e, 25);
      const t1 = (h + s1 + ((e & f) ^ (~e & g)) + constants[i] + w[i]) | 0;
      const s0 = turn(a, 2) ^ turn(a, 13) ^ turn(a, 22);
      const t2 = (s0 + ((a & b) ^ (a & c) ^ (b & c))) | 0;
      h = g, g = f, f = e, e = (d + t1) | 0, d = c, c = b, b = a, a = (t1 + t2) | 0;
    }
    [a, b, c, d, e, f, g, h].forEach((value, i) => { hash[i] += value; });
  }
  return Array.from(hash, (x) => (x >>> 0).toString(16).padStart(8, "0")).join("");
}
