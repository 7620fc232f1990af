// The user interface; the model is in classifier.js.

import { Classifier } from "./classifier.js";
import { geometry } from "./pixels.js";

const $ = (id) => document.getElementById(id);
const SIDE = 640; // width of the image canvas in pixels

let site;
let classifier;
let stream; // of the camera while it is on

async function start() {
  const response = await fetch("site.json");
  if (!response.ok)
    throw new Error("site.json is missing. Make the site with python -m export web.");
  site = await response.json();
  $("model").textContent = site.name;
  document.title = `${site.name} in the browser`;
  classifier = await Classifier.load("model.tflite", (share) => {
    $("progress").value = share;
  });
  $("stage").style.setProperty("--shape", classifier.width / classifier.height);
  $("examples").replaceChildren(...site.examples.map(example));
  $("loading").hidden = true;
  $("main").hidden = false;
  if (site.examples.length) await classifyUrl(site.examples[0]);
}

function example(url, i) {
  const button = document.createElement("button");
  const image = document.createElement("img");
  image.src = url;
  image.alt = `Example ${i + 1}`;
  button.type = "button";
  button.append(image);
  button.onclick = () => attempt(() => classifyUrl(url));
  return button;
}

async function classifyUrl(url) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url} could not be loaded.`);
  await classifyFile(await response.blob());
}

async function classifyFile(blob) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob, {
      imageOrientation: "from-image",
      premultiplyAlpha: "none",
      colorSpaceConversion: "none",
    });
  } catch {
    throw new Error(
      `This browser cannot read ${blob.name ?? "the file"} as an image. ` +
        "Choose a JPEG, PNG or WebP file.",
    );
  }
  await classify(bitmap);
  bitmap.close();
}

// Classifies an image or a frame of the camera.
async function classify(source, width = source.width, height = source.height) {
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(source, 0, 0);
  stopCamera();
  showImage(canvas);
  const result = await classifier.classify(context.getImageData(0, 0, width, height));
  showPredictions(result);
  showAttention(result.attention);
}

// Shows the part of the image that the model sees.
function showImage(image) {
  const { width, height } = classifier;
  const cut = geometry(image.height, image.width, height, width);
  const across = image.width / cut.resizedWidth;
  const down = image.height / cut.resizedHeight;
  const canvas = $("image");
  canvas.width = SIDE;
  canvas.height = (SIDE * height) / width;
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = image.width > SIDE / 4; // shows pixels of small images
  context.imageSmoothingQuality = "high";
  context.drawImage(
    image,
    ...[cut.left * across, cut.top * down, width * across, height * down],
    ...[0, 0, canvas.width, canvas.height],
  );
  canvas.hidden = false;
  $("hint").hidden = true;
  $("stage").classList.add("full");
}

function showPredictions({ probabilities, milliseconds }) {
  const best = Array.from(probabilities, (value, i) => [value, site.labels[i]])
    .sort(([a], [b]) => b - a)
    .slice(0, 5);
  $("predictions").replaceChildren(
    ...best.map(([value, label]) => {
      const percent = `${(100 * value).toFixed(1)} %`;
      const line = document.createElement("li");
      line.style.setProperty("--share", `${100 * value}%`);
      for (const text of [label, percent]) {
        const part = document.createElement("span");
        part.textContent = text;
        line.append(part);
      }
      return line;
    }),
  );
  $("time").textContent = `${milliseconds.toFixed(0)} ms on this device`;
  $("image").setAttribute("aria-label", `The image: ${best[0][1]}`);
}

// Darkens the image where the model does not look.
function showAttention(attention) {
  $("looks").hidden = !attention;
  $("attention").hidden = !attention || !$("show-attention").checked;
  if (!attention) return;
  const { rows, columns, values } = attention;
  const largest = Math.max(...values);
  const shade = new ImageData(columns, rows);
  values.forEach((value, i) => {
    shade.data[4 * i + 3] = 200 * (1 - value / largest);
  });
  const small = new OffscreenCanvas(columns, rows);
  small.getContext("2d").putImageData(shade, 0, 0);
  const canvas = $("attention");
  canvas.width = $("image").width;
  canvas.height = $("image").height;
  canvas.getContext("2d").drawImage(small, 0, 0, canvas.width, canvas.height);
}

async function useCamera() {
  const video = $("video");
  if (stream) return classify(video, video.videoWidth, video.videoHeight);
  try {
    stream = await navigator.mediaDevices.getUserMedia({
      video: { facingMode: "environment" },
    });
  } catch (error) {
    throw new Error(
      `The camera is not available (${error.message}). Allow it for this page, ` +
        "which needs HTTPS or localhost, or choose a file.",
    );
  }
  video.srcObject = stream;
  video.hidden = false;
  $("attention").hidden = true;
  $("camera").textContent = "Take a photo";
  await video.play();
}

function stopCamera() {
  stream?.getTracks().forEach((track) => track.stop());
  stream = null;
  $("video").hidden = true;
  $("camera").textContent = "Camera";
}

// Runs an action and shows its error on the page.
async function attempt(action) {
  $("error").hidden = true;
  try {
    await action();
  } catch (error) {
    console.error(error);
    $("error").textContent = error.message;
    $("error").hidden = false;
  }
}

$("file").onchange = ({ target }) =>
  attempt(async () => {
    const [file] = target.files;
    target.value = ""; // so the same file can be chosen again
    if (file) await classifyFile(file);
  });
$("camera").onclick = () => attempt(useCamera);
$("show-attention").onchange = ({ target }) => {
  $("attention").hidden = !target.checked;
};
document.ondragover = (event) => {
  event.preventDefault();
  $("stage").classList.add("dropping");
};
document.ondragleave = () => $("stage").classList.remove("dropping");
document.ondrop = (event) => {
  event.preventDefault();
  $("stage").classList.remove("dropping");
  const [file] = event.dataTransfer.files;
  if (file && classifier) attempt(() => classifyFile(file));
};

attempt(async () => {
  try {
    await start();
  } catch (error) {
    $("loading").hidden = true;
    throw error;
  }
});
