// onnxruntime-web: WebAssembly always, in threads where the page is cross-origin isolated; WebGPU where it agrees.

import { pixelsOf } from "./pictures.js";

const FOLDER = new URL("./ort/", import.meta.url).href;
const APART = 1e-3; // how far WebGPU's logits may be from WebAssembly's, relative to the largest or to 1
const MOST_THREADS = 4;

const threads = () => (self.crossOriginIsolated ? Math.min(MOST_THREADS, navigator.hardwareConcurrency || 1) : 1);

const loaded = {};

/** Import onnxruntime-web, once for each of its two builds. */
function runtime(file) {
  loaded[file] ??= import(`${FOLDER}${file}`).then((ort) => {
    ort.env.wasm.wasmPaths = FOLDER;
    ort.env.wasm.numThreads = threads();
    ort.env.logLevel = "error";
    return ort;
  });
  return loaded[file];
}

const softmax = (logits) => {
  const largest = logits.reduce((a, b) => Math.max(a, b));
  const powers = Array.from(logits, (value) => Math.exp(value - largest));
  const sum = powers.reduce((a, b) => a + b);
  return powers.map((value) => value / sum);
};
const topOf = (shares) => shares.indexOf(shares.reduce((a, b) => Math.max(a, b)));

export class Engine {
  /** Open a network of site.json with WebAssembly. */
  static async open(network, webgpu) {
    const ort = await runtime("ort.wasm.min.mjs");
    const answer = await fetch(new URL(network.file, import.meta.url));
    if (!answer.ok) throw new Error(`${network.file}: the server answers ${answer.status}`);
    const bytes = new Uint8Array(await answer.arrayBuffer());
    const session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
    return new Engine(network, ort, session, webgpu && "gpu" in navigator ? bytes : null);
  }

  constructor(network, ort, session, bytes) {
    Object.assign(this, { network, ort, session, bytes });
    const count = threads();
    this.word = `WebAssembly, ${count === 1 ? "one thread" : `${count} threads`}`;
    this.note = []; // a further fact
  }

  /** Classify a decoded picture: probabilities, those of the branches, doubt, milliseconds. */
  async classify(bitmap) {
    const channels = this.network.channels;
    const pixels = pixelsOf(bitmap, channels);
    const shape = [1, bitmap.height, bitmap.width, channels];
    let [found, took] = await timed(this.ort, this.session, pixels, shape);
    if (this.bytes) [found, took] = await this.tryWebGPU(pixels, shape, found);
    return this.read(found, took);
  }

  read(found, took) {
    const logits = found[this.session.outputNames[0]].data;
    const probabilities = found.probabilities ? Array.from(found.probabilities.data) : softmax(logits);
    const { branch_probabilities: shares, branch_logits: raw } = found;
    const size = probabilities.length;
    const branches = shares || raw ? [] : null;
    for (let k = 0; branches && k < (shares ?? raw).dims[0]; k++) {
      const own = (shares ?? raw).data.slice(k * size, (k + 1) * size);
      branches.push(shares ? Array.from(own) : softmax(own));
    }
    return {
      probabilities,
      branches: branches?.map((own) => ({ index: topOf(own), probability: own[topOf(own)] })) ?? null,
      entropy: found.uncertainty?.data[0],
      unlike: found.ood_score?.data[0],
      took,
    };
  }

  /** On the first picture: WebGPU takes over where it starts, gives the same numbers, and is faster. */
  async tryWebGPU(pixels, shape, found) {
    const bytes = this.bytes;
    this.bytes = null; // once
    const name = this.session.outputNames[0];
    const [, took] = await timed(this.ort, this.session, pixels, shape); // the first run also prepares
    try {
      if (!(await navigator.gpu.requestAdapter())) throw new Error("it finds no graphics processor");
      const ort = await runtime("ort.webgpu.min.mjs");
      const session = await ort.InferenceSession.create(bytes, { executionProviders: ["webgpu"] });
      const [other] = await timed(ort, session, pixels, shape);
      const apart = difference(found[name].data, other[name].data);
      if (!(apart <= APART)) {
        this.note = [["WebGPU", `not used: its numbers are ${apart.toPrecision(2)} apart from WebAssembly's`]];
      } else {
        const [again, faster] = await timed(ort, session, pixels, shape);
        if (faster < took) {
          await this.session.release();
          Object.assign(this, { ort, session, word: "WebGPU", note: [["WebGPU", "agrees with WebAssembly"]] });
          return [again, faster];
        }
        this.note = [["WebGPU", `not used: it agrees, but needs ${faster.toFixed(0)} ms`]];
      }
      await session.release();
    } catch (error) {
      this.note = [["WebGPU", `not used: ${error.message ?? error}`]];
    }
    return [found, took];
  }
}

async function timed(ort, session, pixels, shape) {
  const tensor = new ort.Tensor("uint8", pixels, shape);
  const started = performance.now();
  const found = await session.run({ [session.inputNames[0]]: tensor });
  return [found, performance.now() - started];
}

/** Largest difference, relative to the largest number or to 1; Infinity where a number is none. */
export function difference(one, other) {
  let [apart, scale] = [0, 1];
  for (let i = 0; i < one.length; i++) {
    if (!Number.isFinite(other[i])) return Infinity;
    scale = Math.max(scale, Math.abs(one[i]));
    apart = Math.max(apart, Math.abs(one[i] - other[i]));
  }
  return apart / scale;
}
