/* The model of this book in plain JavaScript: it reads a byte, and says which may come next.

   Read it beside the chapters. Each function and class has the name of its Python twin, and the
   line above it says in which file that is and which chapter teaches it. Names are written as
   there: snake_case, D for the width of the model, T for time in bytes. A matrix (out, in) is one
   flat array, row after row. JavaScript adds up in float64; what is kept is float32. */

// as in tilelli_nb/errors.py
export class CheckpointError extends Error {}

const TYPES = { F32: Float32Array, I8: Int8Array, U8: Uint8Array };

/* Bytes of a packed safetensors file -> its tensors by name, and the book's metadata. */
// tilelli_nb/storage/checkpoint.py · chapter 09
export function read_tensors(buffer) {
  try {
    const length = Number(new DataView(buffer).getBigUint64(0, true));
    const { __metadata__: about, ...entries } = JSON.parse(
      new TextDecoder().decode(new Uint8Array(buffer, 8, length)));
    const tensors = {};
    for (const [name, { dtype, shape, data_offsets: [start, stop] }] of Object.entries(entries)) {
      const data = new TYPES[dtype](buffer.slice(8 + length + start, 8 + length + stop));
      tensors[name] = { shape, data };
    }
    // "sha256 ", the checksum, and the metadata as JSON
    const metadata = JSON.parse(about.tilelli.slice(about.tilelli.indexOf("{")));
    return { tensors, metadata };
  } catch {
    throw new CheckpointError("this is no packed model of the book");
  }
}

/* Five codes to a byte, the first one lowest -> Int8Array of -1, 0 and 1. */
// tilelli_nb/model/ternary.py · chapter 06
export function unpack(packed, count) {
  const codes = new Int8Array(count); // what is written behind its end is ignored
  for (let i = 0; i < packed.length; i++) {
    let rest = packed[i];
    for (let place = 5 * i; place < 5 * i + 5; place++) {
      codes[place] = rest % 3 - 1;
      rest = Math.floor(rest / 3);
    }
  }
  return codes;
}

/* Tensors of a packed file -> by name: fp32 numbers, or {codes, scale} of a ternary matrix. */
// tilelli_nb/inference/packed.py · chapter 13
export function unpack_weights(tensors, { packed, config }) {
  if (packed?.version !== 1) throw new CheckpointError("it is packed in another version");
  const weights = {};
  const { d_model, ffn_expand } = config.model;
  for (const [name, { shape, data }] of Object.entries(tensors)) {
    const [, base, kind] = name.match(/^(.*?)(\.codes|\.rows|\.scale)?$/);
    const scale = tensors[`${base}.scale`]?.data;
    if (kind === undefined) {
      weights[base] = data;
    } else if (kind === ".codes") { // of up or down: both have as many
      weights[base] = { codes: unpack(data, ffn_expand * d_model ** 2), scale: scale[0] };
    } else if (kind === ".rows") {
      weights[base] = new Float32Array(data);
      for (let i = 0; i < data.length; i++) weights[base][i] *= scale[Math.floor(i / shape[1])];
    }
  }
  return weights;
}

/* Some rows of a matrix times a vector, the plain way. Row r begins at `start` + r * `stride`
   and is as long as y. Four rows at a time: their sums do not wait for each other. */
function multiply_rows(weight, start, stride, rows, y, out) {
  const width = y.length;
  let r = 0;
  for (; r + 4 <= rows; r += 4) {
    const a = start + r * stride, b = a + stride, c = b + stride, d = c + stride;
    let sum_a = 0, sum_b = 0, sum_c = 0, sum_d = 0;
    for (let j = 0; j < width; j++) {
      sum_a += weight[a + j] * y[j];
      sum_b += weight[b + j] * y[j];
      sum_c += weight[c + j] * y[j];
      sum_d += weight[d + j] * y[j];
    }
    out[r] = sum_a, out[r + 1] = sum_b, out[r + 2] = sum_c, out[r + 3] = sum_d;
  }
  for (; r < rows; r++) {
    let sum = 0;
    for (let j = 0; j < width; j++) sum += weight[start + r * stride + j] * y[j];
    out[r] = sum;
  }
}

/* A matrix of fp32 numbers as a map: y (in) -> out (out). */
// tilelli_nb/inference/prepared.py · chapter 13
export class Matrix {
  constructor(weight, width) {
    Object.assign(this, { weight, width, rows: weight.length / width });
  }

  forward(y, out) {
    multiply_rows(this.weight, 0, this.width, this.rows, y, out);
  }
}

const FOUR = 81; // 3^4: so many sums can be made of four inputs times -1, 0 or 1

/* A ternary matrix as what it is: additions and subtractions, and one product with the scale.

   Four inputs a, b, c, d can only make 81 different sums, such as a - c + d. All of them are
   made once, by one addition each; then every row needs one look at the table for four of its
   codes. So the codes are kept four to a byte, and those of all rows side by side. */
// tilelli_nb/model/ternary.py · chapter 06
export class TernaryLinear {
  constructor({ codes, scale }, width) {
    Object.assign(this, { scale, width, rows: codes.length / width });
    // four groups are looked up together: the last ones may be of code 0 alone
    this.groups = Math.ceil(width / 16) * 4;
    this.fours = new Uint8Array(this.groups * this.rows); // (groups, out)
    for (let g = 0; g < this.groups; g++) {
      for (let r = 0; r < this.rows; r++) {
        let number = 0;
        for (let j = 4 * g + 3; j >= 4 * g; j--) {
          number = 3 * number + 1 + (j < width ? codes[r * width + j] : 0);
        }
        this.fours[g * this.rows + r] = number;
      }
    }
    this.sums = new Float32Array(FOUR * this.groups);
  }

  /* All sums of each four inputs: with each input, every sum so far becomes three. */
  make_sums(y) {
    const { sums, groups, width } = this;
    for (let g = 0; g < groups; g++) {
      const start = g * FOUR;
      let size = 1;
      sums[start] = 0;
      for (let j = 4 * g; j < 4 * g + 4; j++) {
        const value = j < width ? y[j] : 0;
        for (let i = start; i < start + size; i++) {
          const sum = sums[i];
          sums[i] = sum - value;
          sums[i + size] = sum;
          sums[i + 2 * size] = sum + value;
        }
        size *= 3;
      }
    }
  }

  forward(y, out) {
    this.make_sums(y);
    const { sums, fours, rows, groups, scale } = this;
    out.fill(0);
    for (let g = 0; g < groups; g += 4) {
      const sums_a = g * FOUR, sums_b = sums_a + FOUR, sums_c = sums_b + FOUR, sums_d = sums_c + FOUR;
      const a = g * rows, b = a + rows, c = b + rows, d = c + rows;
      for (let r = 0; r < rows; r++) {
        out[r] += sums[sums_a + fours[a + r]] + sums[sums_b + fours[b + r]]
          + sums[sums_c + fours[c + r]] + sums[sums_d + fours[d + r]];
      }
    }
    for (let r = 0; r < rows; r++) out[r] *= scale;
  }
}

/* x (D) -> y (D) with mean 0 and variance 1, times a weight, plus a bias. */
// PyTorch's own · chapter 08
class LayerNorm {
  constructor(weight, bias) {
    Object.assign(this, { weight, bias });
  }

  forward(x, y) {
    let mean = 0, variance = 0;
    for (const value of x) mean += value / x.length;
    for (const value of x) variance += (value - mean) ** 2 / x.length;
    const factor = 1 / Math.sqrt(variance + 1e-5);
    for (let i = 0; i < x.length; i++) y[i] = (x[i] - mean) * factor * this.weight[i] + this.bias[i];
  }
}

/* Numbers -> in their place e^number over the sum of all, 0 for those below `least`. */
function softmax(numbers, least = -Infinity) {
  let highest = -Infinity, sum = 0;
  for (let i = 0; i < numbers.length; i++) if (numbers[i] > highest) highest = numbers[i];
  for (let i = 0; i < numbers.length; i++) {
    numbers[i] = numbers[i] < least ? 0 : Math.exp(numbers[i] - highest);
    sum += numbers[i];
  }
  for (let i = 0; i < numbers.length; i++) numbers[i] /= sum;
}

/* For every byte, how much of each of the three pathways: y (D) -> p (3), in place. */
// tilelli_nb/model/router.py · chapter 07
export class Router {
  constructor(weight, width) {
    this.map = new Matrix(weight, width);
    this.p = new Float32Array(3);
  }

  forward(y) {
    this.map.forward(y, this.p);
    softmax(this.p);
    return this.p;
  }
}

/* Pathway 1: each channel mixes the present byte with the four before it. */
// tilelli_nb/model/conv.py · chapter 03
export class CausalConv {
  constructor(weight, width) {
    this.weight = weight; // (D, taps): the last tap is the present byte's
    this.taps = weight.length / width;
    this.heard = new Float32Array(weight.length); // (taps, D), the oldest first
  }

  restart() { this.heard.fill(0); }

  forward(y, out) {
    const { weight, taps, heard } = this;
    const D = y.length;
    heard.copyWithin(0, D); // all move one place into the past
    heard.set(y, (taps - 1) * D);
    for (let i = 0; i < D; i++) {
      let sum = 0;
      for (let tap = 0; tap < taps; tap++) sum += weight[i * taps + tap] * heard[tap * D + i];
      out[i] = sum;
    }
  }
}

const best = new Float64Array(256); // room for kth_largest

/* The `keep`-th largest of some numbers, or the smallest of fewer. */
// tilelli_nb/model/attention.py · chapter 04
export function kth_largest(numbers, keep) {
  const last = Math.min(keep, numbers.length) - 1;
  best.fill(-Infinity, 0, last + 1); // the largest so far, in descending order
  for (let i = 0; i < numbers.length; i++) {
    const number = numbers[i];
    if (number <= best[last]) continue;
    let place = last;
    for (; place > 0 && best[place - 1] < number; place--) best[place] = best[place - 1];
    best[place] = number;
  }
  return best[last];
}

/* Scores (T) -> in their place the weights: a softmax over the best `keep`, 0 for the rest. Ties
   at the threshold are all kept. */
// tilelli_nb/model/attention.py · chapter 04
export function softmax_of_kept(scores, keep) {
  softmax(scores, kth_largest(scores, keep));
}

/* Pathway 2: each head keeps its best bytes and mixes what they say. It remembers the keys and
   the values of the window. */
// tilelli_nb/model/attention.py · chapter 04
export class TopKAttention {
  constructor(weight, { d_model: D, n_heads, keep, context }) {
    this.qkv = new Matrix(weight, D); // rows: q, then k, then v
    Object.assign(this, { n_heads, keep, context, length: 0 });
    this.now = new Float32Array(3 * D);
    this.keys = new Float32Array(context * D);
    this.values = new Float32Array(context * D);
    this.weights = new Float32Array(n_heads * context); // (H, T): for who asks why
  }

  restart() { this.length = 0; }

  forward(y, out) {
    const { now, keys, values, weights, n_heads, keep, context } = this;
    const D = y.length, head_size = D / n_heads;
    this.qkv.forward(y, now);
    keys.set(now.subarray(D, 2 * D), this.length * D);
    values.set(now.subarray(2 * D), this.length * D);
    const T = ++this.length;
    out.fill(0);
    for (let h = 0; h < n_heads; h++) {
      const start = h * head_size;
      const q = now.subarray(start, start + head_size);
      for (let i = 0; i < head_size; i++) q[i] /= Math.sqrt(head_size);
      const scores = weights.subarray(h * context, h * context + T);
      multiply_rows(keys, start, D, T, q, scores);
      softmax_of_kept(scores, keep);
      for (let t = 0; t < T; t++) {
        if (scores[t] === 0) continue; // dropped
        for (let i = start; i < start + head_size; i++) out[i] += scores[t] * values[t * D + i];
      }
    }
  }
}

/* The error function, as in Abramowitz and Stegun, 7.1.26: wrong by 1.5e-7 at most. */
function erf(x) {
  const t = 1 / (1 + 0.3275911 * Math.abs(x));
  const series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741
    + t * (-1.453152027 + t * 1.061405429))));
  return Math.sign(x) * (1 - series * Math.exp(-x * x));
}

/* Pathway 3: up to four times the width, GELU, and down again. It sees one byte. */
// tilelli_nb/model/ternary.py · chapter 06
export class TernaryFFN {
  constructor(up, down, { d_model: D, ffn_expand }) {
    this.up = new TernaryLinear(up, D);
    this.down = new TernaryLinear(down, ffn_expand * D);
    this.inside = new Float32Array(ffn_expand * D);
  }

  forward(y, out) {
    const { inside } = this;
    this.up.forward(y, inside);
    for (let i = 0; i < inside.length; i++) inside[i] *= (1 + erf(inside[i] * Math.SQRT1_2)) / 2;
    this.down.forward(inside, out);
  }
}

/* x (D) += p_conv conv + p_attention attention + p_ffn ffn, in place. */
// tilelli_nb/model/network.py · chapter 08
export function mix(x, p, conv, attention, ffn) {
  for (let i = 0; i < x.length; i++) x[i] += p[0] * conv[i] + p[1] * attention[i] + p[2] * ffn[i];
}

/* Three pathways read the same normalised vector; a router says how much of each is added. */
// tilelli_nb/model/network.py · chapter 08
export class RoutedBlock {
  constructor(weights, name, model) {
    const of = (part) => weights[`${name}.${part}`];
    const D = model.d_model;
    this.norm = new LayerNorm(of("norm.weight"), of("norm.bias"));
    this.router = new Router(of("router.weight"), D);
    this.conv = new CausalConv(of("conv.weight"), D);
    this.attention = new TopKAttention(of("attention.weight"), model);
    this.ffn = new TernaryFFN(of("ffn.up.weight"), of("ffn.down.weight"), model);
    this.paths = [0, 1, 2].map(() => new Float32Array(D));
    this.y = new Float32Array(D);
  }

  restart() { [this.conv, this.attention].forEach((pathway) => pathway.restart()); }

  forward(x) {
    const { y, paths: [conv, attention, ffn] } = this;
    this.norm.forward(x, y);
    const p = this.router.forward(y);
    this.conv.forward(y, conv);
    this.attention.forward(y, attention);
    this.ffn.forward(y, ffn);
    mix(x, p, conv, attention, ffn);
  }
}

/* Two tables, blocks, a norm, a matrix. It remembers the bytes of its window. */
// tilelli_nb/model/network.py · chapter 08
export class Network {
  constructor(buffer) {
    const { tensors, metadata } = read_tensors(buffer);
    this.config = metadata.config;
    const model = this.config.model;
    const weights = unpack_weights(tensors, metadata);
    this.context = model.context;
    [this.token, this.position] = [weights["token.weight"], weights["position.weight"]];
    this.blocks = Array.from({ length: model.n_blocks },
      (_, i) => new RoutedBlock(weights, `blocks.${i}`, model));
    this.norm = new LayerNorm(weights["norm.weight"], weights["norm.bias"]);
    this.output = new Matrix(weights["output.weight"], model.d_model);
    this.x = new Float32Array(model.d_model); // the residual stream
    this.y = this.x.slice();
    this.window = []; // the bytes that have been read
  }

  /* Takes one byte, at the next position of the window, through all blocks. */
  hidden(byte) {
    const { x, token, position, window, blocks, x: { length: D } } = this;
    if (window.length === 0) for (const block of blocks) block.restart();
    for (let i = 0; i < D; i++) x[i] = token[byte * D + i] + position[window.length * D + i];
    for (const block of blocks) block.forward(x);
    window.push(byte);
  }

  /* The last block's output -> logits (256) of the next byte. */
  logits() {
    const logits = new Float32Array(256);
    this.norm.forward(this.x, this.y);
    this.output.forward(this.y, logits);
    return logits;
  }
}

/* How many bytes a full window drops at once. */
// tilelli_nb/inference/sampling.py · chapter 13
export function window_stride(context) {
  return context - Math.floor(context / 2);
}

/* Where the window starts when n bytes have been read. */
// tilelli_nb/inference/sampling.py · chapter 13
export function window_start(n, context) {
  const stride = window_stride(context);
  return Math.max(stride * Math.ceil((n - context) / stride), 0);
}

/* Reads bytes from position 0 on, and returns the logits of the next one. It pauses (`yield`)
   after each, so that whoever waits can stop it. */
// tilelli_nb/inference/decoding.py · chapter 13
export function* prefill(lm, ids) {
  lm.window = [];
  for (const byte of ids) {
    lm.hidden(byte);
    yield;
  }
  return lm.logits();
}

/* Reads one byte more. A full window drops its first half, and the rest is read again. */
// tilelli_nb/inference/decoding.py · chapter 13
export function* step(lm, byte) {
  if (lm.window.length === lm.context) {
    const kept = lm.window.slice(window_stride(lm.context));
    return yield* prefill(lm, [...kept, byte]);
  }
  lm.hidden(byte);
  return lm.logits();
}

/* Reads a prompt as far as the window still holds it. An empty one is an implied byte 0. */
// tilelli_nb/inference/decoding.py · chapter 13
export function* prefill_prompt(lm, ids) {
  const seen = ids.slice(window_start(ids.length, lm.context));
  return yield* prefill(lm, seen.length ? seen : [0]);
}

/* Random numbers, 64 bits each: SplitMix64. PyTorch has another generator, so for one seed the
   page and the package draw different texts. */
export class SplitMix64 {
  constructor(seed) { this.state = BigInt(seed); }

  /* The next number from 0 up to 1: the upper 53 bits of the next 64, over 2^53. */
  uniform() {
    this.state = BigInt.asUintN(64, this.state + 0x9e3779b97f4a7c15n);
    let z = this.state;
    z = BigInt.asUintN(64, (z ^ (z >> 30n)) * 0xbf58476d1ce4e5b9n);
    z = BigInt.asUintN(64, (z ^ (z >> 27n)) * 0x94d049bb133111ebn);
    return Number((z ^ (z >> 31n)) >> 11n) / 2 ** 53;
  }
}

/* Logits (256) -> probabilities (256) after temperature, top-k and top-p, in that order. */
// tilelli_nb/inference/sampling.py · chapter 13
export function probabilities(logits, { temperature, top_k = 256, top_p = 1 }) {
  const highest = Math.max(...logits); // with none above 0, no temperature is too low
  const p = Float64Array.from(logits, (logit) => (logit - highest) / temperature);
  softmax_of_kept(p, top_k);
  if (top_p === 1) return p;
  const order = [...p.keys()].sort((a, b) => p[b] - p[a]);
  let before = 0; // what the more probable bytes sum to
  for (const byte of order) {
    before += p[byte];
    if (before - p[byte] >= top_p) p[byte] = 0;
  }
  const kept = p.reduce((a, b) => a + b);
  return p.map((share) => share / kept);
}

/* Draws the next byte: the first at which the sum of probabilities passes a random number. At
   temperature 0 it is the likeliest. */
// tilelli_nb/inference/sampling.py · chapter 13
export function sample_next(logits, sampling, generator) {
  if (!logits.every(Number.isFinite)) throw new CheckpointError("its logits are not finite");
  if (sampling.temperature === 0) return logits.indexOf(Math.max(...logits));
  const p = probabilities(logits, sampling);
  const drawn = generator.uniform();
  let sum = 0;
  for (let byte = 0; byte < 256; byte++) {
    sum += p[byte];
    if (drawn < sum) return byte;
  }
  return p.findLastIndex((share) => share > 0); // a sum of rounded shares can fall short of 1
}

/* Yields the new bytes with the logits they were drawn from, {byte, logits}; and nothing while a
   prompt is read. The byte that stops it is not among them unless `with_stop`. */
// tilelli_nb/inference/decoding.py · chapter 13
export function* stream(lm, ids, sampling) {
  const { max_new, stop = [0], with_stop = false } = sampling;
  const generator = new SplitMix64(sampling.seed ?? 0);
  let logits = yield* prefill_prompt(lm, ids);
  for (let count = 1; count <= max_new; count++) {
    const byte = sample_next(logits, sampling, generator);
    if (with_stop || !stop.includes(byte)) yield { byte, logits };
    if (stop.includes(byte) || count === max_new) return;
    logits = yield* step(lm, byte);
  }
}
