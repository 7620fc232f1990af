// Runs a .tflite file of keras-cait with LiteRT.js.

import { loadAndCompile, loadLiteRt, Tensor } from "@litertjs/core";

import { pixels } from "./pixels.js";

let runtime; // loaded once

export class Classifier {
  // Calls `onProgress` with the loaded share of the file, in 0...1.
  static async load(url, onProgress) {
    if (typeof WebAssembly === "undefined")
      throw new Error("The model needs WebAssembly, which this browser does not support.");
    // Threads need shared memory, which only isolated pages have.
    runtime ??= loadLiteRt("litert/wasm/", { threads: crossOriginIsolated });
    const [bytes] = await Promise.all([download(url, onProgress), runtime]);
    const model = await loadAndCompile(bytes, {
      accelerator: "wasm",
      cpuOptions: { numThreads: Math.min(4, navigator.hardwareConcurrency) },
    });
    return new Classifier(model);
  }

  constructor(model) {
    // This signature returns the classes as well, in the same run.
    this.runner = model.signatures["attention"] ?? model;
    [this.input] = this.runner.getInputDetails();
    [, this.height, this.width] = this.input.shape;
  }

  // Classifies an `ImageData`. Returns the probabilities of the classes, the
  // attention from the class token to each patch as `{rows, columns, values}`
  // (mean over blocks and heads) or null, and the milliseconds of the run.
  async classify(image) {
    const bytes = pixels(image, this.height, this.width);
    const data = this.input.dtype === "uint8" ? bytes : Float32Array.from(bytes);
    const tensor = new Tensor(
      data instanceof Float32Array ? data : new Uint8Array(data.buffer),
      this.input.shape,
    );
    const start = performance.now();
    const outputs = await this.runner.run({ [this.input.name]: tensor });
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
}

async function download(url, onProgress) {
  const response = await fetch(url);
  if (!response.ok)
    throw new Error(`${url} could not be loaded: ${response.status} ${response.statusText}.`);
  const size = Number(response.headers.get("content-length"));
  const parts = [];
  let loaded = 0;
  for (const reader = response.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    loaded += value.length;
    if (size) onProgress(Math.min(1, loaded / size));
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
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
