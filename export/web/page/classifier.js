// Runs a .tflite file of keras-cait with LiteRT.js.

import { loadAndCompile, loadLiteRt, supportsFeature, Tensor } from "@litertjs/core";

import { download, matches, REMEDY } from "./files.js";
import { pixels } from "./pixels.js";

let runtime; // loaded once
let refused = false; // whether the GPU did not take a part of the last model

export class Classifier {
  // Takes the address of the file, the expected number of classes, the SHA-256 of
  // the file, and a function of the loaded share of it, in 0...1.
  static async load(url, { classes, sha256, onProgress = () => {} }) {
    if (typeof WebAssembly === "undefined")
      throw new Error("The model needs WebAssembly, which this browser does not support.");
    runtime ??= quietly(start);
    const [bytes] = await Promise.all([download(url, onProgress), runtime]);
    if (!(await matches(bytes, sha256)))
      throw new Error(`${url} is damaged, or is not the model of this page. ${REMEDY}`);
    let model;
    try {
      model = (await compileForGpu(bytes)) ?? (await compileForCpu(bytes));
    } catch (cause) {
      const reason = "is damaged, is not a .tflite model, or needs more memory than there is";
      throw new Error(`${url} ${reason} (${cause.message}). ${REMEDY}`, { cause });
    }
    const wrong = difference(model, classes);
    if (wrong) throw new Error(`${url} is not a classifier for this page: ${wrong} ${REMEDY}`);
    return new Classifier(model, bytes);
  }

  constructor(model, bytes) {
    this.model = model;
    this.bytes = bytes;
    [, this.height, this.width] = model.getInputDetails()[0].shape;
  }

  // What runs the model.
  get engine() {
    return this.model.options.accelerator === "webgpu" ? "WebGPU" : "WebAssembly";
  }

  // Classifies an `ImageData`. Returns the probabilities of the classes, the
  // attention from the class token to each patch as `{rows, columns, values}`
  // (mean over blocks and heads) or null, and the milliseconds of the run.
  async classify(image) {
    const data = pixels(image, this.height, this.width);
    if (this.engine === "WebGPU") {
      try {
        return await run(this.model, data);
      } catch {
        // Devices lose their GPU, for example when they sleep.
        this.model = await compileForCpu(this.bytes);
      }
    }
    return run(this.model, data);
  }
}

async function start() {
  // Only the log of LiteRT tells what the GPU refuses.
  const printErr = (line) => {
    refused ||= /operations will run on the CPU/.test(line);
  };
  self.Module = { print() {}, printErr }; // read by LiteRT
  // Threads need shared memory, which only isolated pages have.
  const threads = crossOriginIsolated && (await supportsFeature("relaxedSimd"));
  return loadLiteRt("litert/wasm/", { threads });
}

// The model, or null where the GPU does not run all of it.
async function compileForGpu(bytes) {
  try {
    refused = false;
    const model = await quietly(() =>
      loadAndCompile(bytes, { accelerator: "webgpu", gpuOptions: { precision: "fp32" } }),
    );
    if (model.isFullyAccelerated && !refused) {
      const size = model.getInputDetails()[0].shape.reduce((a, b) => a * b);
      const { probabilities } = await run(model, new Uint8ClampedArray(size));
      if (probabilities.every(Number.isFinite)) return model;
    }
    model.delete();
  } catch {} // no GPU, not enough memory, a driver that fails
  return null;
}

function compileForCpu(bytes) {
  const numThreads = Math.min(4, navigator.hardwareConcurrency);
  return loadAndCompile(bytes, { accelerator: "wasm", cpuOptions: { numThreads } });
}

// Runs an action without its warnings in the console.
async function quietly(action) {
  const { warn } = console;
  console.warn = () => {};
  try {
    return await action();
  } finally {
    console.warn = warn;
  }
}

// Runs a model on the bytes of an image.
async function run(model, bytes) {
  // This signature returns the classes as well, in the same run.
  const runner = model.signatures["attention"] ?? model;
  const [{ name, dtype, shape }] = runner.getInputDetails();
  const data = dtype === "uint8" ? new Uint8Array(bytes) : new Float32Array(bytes);
  const tensor = new Tensor(data, shape);
  const start = performance.now();
  const outputs = await runner.run({ [name]: tensor });
  const arrays = {};
  for (const [name, output] of Object.entries(outputs))
    arrays[name] = { values: await output.data(), shape: output.type.layout.dimensions };
  const milliseconds = performance.now() - start;
  for (const one of [tensor, ...Object.values(outputs)]) one.delete();
  return {
    probabilities: arrays.probabilities?.values ?? softmax(arrays.logits.values),
    attention: arrays.attention ? mean(arrays.attention) : null,
    milliseconds,
  };
}

// What differs from a model of `python -m export litert`, or nothing.
function difference(model, classes) {
  const show = ({ name, dtype, shape }) => `${name} ${dtype} (${[...shape].join(", ")})`;
  const inputs = model.getInputDetails();
  const outputs = model.getOutputDetails();
  const [{ shape, dtype }] = inputs;
  const isImage =
    inputs.length === 1 &&
    shape.length === 4 &&
    shape[0] === 1 &&
    shape[3] === 3 &&
    ["float32", "uint8"].includes(dtype);
  if (!isImage)
    return `it takes ${inputs.map(show).join(" and ")} instead of one image (1, height, width, 3).`;
  const scores = outputs.find(({ name }) => ["probabilities", "logits"].includes(name));
  if (!scores)
    return `it returns ${outputs.map(show).join(" and ")} instead of probabilities or logits.`;
  const found = scores.shape.at(-1);
  if (found !== classes) return `it has ${found} classes and the page ${classes} labels.`;
}

function softmax(logits) {
  const largest = Math.max(...logits);
  const exponents = Array.from(logits, (x) => Math.exp(x - largest));
  const sum = exponents.reduce((a, b) => a + b);
  return exponents.map((x) => x / sum);
}

// Mean over the maps of an array (1, maps, rows, columns).
function mean({ values, shape: [, maps, rows, columns] }) {
  const size = rows * columns;
  const sums = new Float32Array(size);
  values.forEach((value, i) => {
    sums[i % size] += value / maps;
  });
  return { rows, columns, values: sums };
}
