// The user interface; the model is in classifier.js.

import { Classifier } from "./classifier.js";
import { get, getJson } from "./files.js";
import { drawHeatmap, drawScale } from "./heatmap.js";
import { keepOffline } from "./offline.js";
import { geometry } from "./pixels.js";

const $ = (id) => document.getElementById(id);
const SIDE = 640; // width of the image canvas in pixels
const LARGEST = 2 ** 24; // pixels of a canvas on phones

let site;
let classifier;
let stream; // of the camera while it is on
let last = Promise.resolve(); // ends with the last action

async function start() {
  site = await getJson("site.json");
  $("model").textContent = site.name;
  document.title = `${site.name} in the browser`;
  classifier = await Classifier.load("model.tflite", {
    classes: site.labels.length,
    sha256: site.sha256,
    onProgress: (share) => {
      $("progress").value = share;
    },
  });
  $("stage").style.setProperty("--shape", classifier.width / classifier.height);
  $("examples").hidden = !site.examples.length;
  $("examples").querySelector("ul").append(...site.examples.map(example));
  $("camera").hidden = !navigator.mediaDevices;
  $("loading").hidden = true;
  $("main").hidden = false;
  $("sharing").hidden = false;
  drawScale($("scale"));
  showStrength();
  if (site.examples.length) await classifyExample(site.examples[0]);
  // The page works as well where it cannot be kept.
  keepOffline().then(
    () => ($("offline").hidden = false),
    () => {},
  );
}

function example(one) {
  const [item, button] = [document.createElement("li"), document.createElement("button")];
  const [image, name] = [document.createElement("img"), document.createElement("span")];
  image.src = one.url;
  image.alt = "";
  name.textContent = one.name;
  button.type = "button";
  button.title = one.name;
  button.append(image, name);
  button.onclick = () => attempt(() => classifyExample(one));
  item.append(button);
  return item;
}

async function classifyExample({ url, name }) {
  await classifyFile(await (await get(url)).blob(), `Example: ${name}`);
}

async function classifyFile(blob, name = blob.name) {
  if (blob.type.startsWith("image/svg"))
    throw new Error(
      `${name} is an SVG drawing, which has no pixels. Save it as PNG in an image editor, ` +
        "and choose that file.",
    );
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob, {
      imageOrientation: "from-image",
      premultiplyAlpha: "none",
      colorSpaceConversion: "none",
    });
  } catch {
    throw new Error(
      `This browser cannot read ${name} as an image. Choose a JPEG, PNG or WebP file.`,
    );
  }
  await classify(bitmap, name);
  bitmap.close();
}

// Classifies an image or a frame of the camera.
async function classify(source, name, width = source.width, height = source.height) {
  const scale = Math.min(1, Math.sqrt(LARGEST / (width * height)));
  const canvas = new OffscreenCanvas(width * scale, height * scale);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.drawImage(source, 0, 0, canvas.width, canvas.height);
  stopCamera();
  showImage(canvas, name);
  const image = context.getImageData(0, 0, canvas.width, canvas.height);
  const result = await classifier.classify(image);
  showPredictions(result);
  showAttention(result.attention);
}

// Shows the part of the image that the model sees.
function showImage(image, name) {
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
  $("caption").textContent = name;
  $("heatmap").hidden = true;
  $("hint").hidden = true;
  $("stage").classList.add("full");
}

function showPredictions({ probabilities, milliseconds }) {
  const best = Array.from(probabilities, (value, i) => [value, site.labels[i]])
    .sort(([a], [b]) => b - a)
    .slice(0, 5)
    .map(([value, label]) => [value, label, `${(100 * value).toFixed(1)} %`]);
  $("predictions").replaceChildren(
    ...best.map(([value, ...texts]) => {
      const line = document.createElement("li");
      line.style.setProperty("--share", `${100 * value}%`);
      for (const text of texts) {
        const part = document.createElement("span");
        part.textContent = text;
        line.append(part);
      }
      return line;
    }),
  );
  const [[, label, percent]] = best;
  $("time").textContent = `${milliseconds.toFixed(0)} ms on this device with ${classifier.engine}`;
  $("status").textContent = `${$("caption").textContent}: ${label}, ${percent}`;
  $("image").setAttribute("aria-label", `The image: ${label}`);
}

function showAttention(attention) {
  $("looks").hidden = !attention;
  $("heatmap").hidden = !attention;
  if (!attention) return;
  $("heatmap").width = $("image").width;
  $("heatmap").height = $("image").height;
  drawHeatmap($("heatmap"), attention);
}

function showStrength() {
  $("stage").style.setProperty("--strength", $("strength").value / 100);
}

async function useCamera() {
  const video = $("video");
  if (stream) return classify(video, "Photo", video.videoWidth, video.videoHeight);
  try {
    stream = await navigator.mediaDevices.getUserMedia({
      video: { facingMode: "environment" },
    });
  } catch (error) {
    throw new Error(
      `The camera is not available (${error.message}). Allow it for this page, ` +
        "or choose a file.",
    );
  }
  video.srcObject = stream;
  video.hidden = false;
  $("stop").hidden = false;
  $("camera").textContent = "Take a photo";
  await video.play();
}

function stopCamera() {
  stream?.getTracks().forEach((track) => track.stop());
  stream = null;
  $("video").hidden = true;
  $("stop").hidden = true;
  $("camera").textContent = "Camera";
}

// Classifies the image among dropped or pasted data, which end with the event.
function classifyData({ files }) {
  const file = Array.from(files).find(({ type }) => type.startsWith("image/")) ?? files[0];
  attempt(async () => {
    if (!file)
      throw new Error("That is not an image file. Save the image first, or copy the image itself.");
    await classifyFile(file);
  });
}

// Shares the address alone.
async function share() {
  const url = location.origin + location.pathname;
  if (navigator.share) {
    await navigator.share({ title: document.title, url }).catch((error) => {
      if (error.name !== "AbortError") throw error; // else closed by the visitor
    });
  } else if (navigator.clipboard) {
    await navigator.clipboard.writeText(url);
    $("shared").textContent = "Its address is copied.";
  } else {
    $("shared").textContent = url;
  }
}

// Runs an action after those before it, and shows its error on the page.
function attempt(action) {
  last = last.then(async () => {
    $("error").hidden = true;
    try {
      await action();
    } catch (error) {
      console.error(error);
      $("error").textContent = error.message;
      $("error").hidden = false;
    }
  });
}

$("file").onchange = ({ target }) => {
  const [file] = target.files;
  target.value = ""; // so the same file can be chosen again
  if (file) attempt(() => classifyFile(file));
};
$("camera").onclick = () => attempt(useCamera);
$("stop").onclick = stopCamera;
$("strength").oninput = showStrength;
$("share").onclick = () => attempt(share);
document.ondragover = (event) => {
  event.preventDefault();
  $("stage").classList.add("dropping");
};
document.ondragleave = () => $("stage").classList.remove("dropping");
document.ondrop = (event) => {
  event.preventDefault();
  $("stage").classList.remove("dropping");
  if (classifier) classifyData(event.dataTransfer);
};
document.onpaste = (event) => {
  if (classifier) classifyData(event.clipboardData);
};

attempt(async () => {
  try {
    await start();
  } catch (error) {
    $("loading").hidden = true;
    throw error;
  }
});
