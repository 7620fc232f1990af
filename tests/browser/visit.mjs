// Opens a site of `python -m export web` in Chromium, uses it as a visitor would,
// and prints what it saw as JSON.
//
//   node visit.mjs URL LINK NEXT
//
// URL serves LINK, which leads to the site; NEXT is a newer version of it.

import { renameSync, symlinkSync } from "node:fs";

import chromium from "@sparticuz/chromium";
import { chromium as browserType } from "playwright-core";

const [url, link, next] = process.argv.slice(2);
const READY = "#predictions li, .error:not([hidden])";

const browser = await browserType.launch({
  executablePath: await chromium.executablePath(),
  args: ["--no-sandbox", "--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"],
});

// Opens a page in a context of its own, and gives it to a function.
async function visit(action, { gpu = false, address = url, prepare } = {}) {
  const context = await browser.newContext({ viewport: { width: 390, height: 844 } });
  await prepare?.(context);
  if (!gpu) await context.addInitScript(() => delete Navigator.prototype.gpu);
  context.setDefaultTimeout(100_000); // busy machines, and GPUs without a GPU
  const page = await context.newPage();
  const messages = [];
  page.on("pageerror", (error) => messages.push(error.message));
  page.on("console", (message) => messages.push(message.text()));
  await page.goto(address);
  await page.waitForSelector(READY);
  const seen = await action(page, { context, messages });
  await context.close();
  return seen;
}

const error = (page) => page.locator(".error:visible").innerText();

// The predictions for each example, chosen with the keyboard.
async function predictions(page) {
  const seen = [];
  const text = (selector) => page.locator(selector).allTextContents();
  for (const button of await page.locator("#examples button").all()) {
    await page.evaluate(() => document.getElementById("predictions").replaceChildren());
    await button.press("Enter");
    await page.waitForSelector("#predictions li");
    seen.push({
      name: await button.innerText(),
      caption: (await text("#caption"))[0],
      labels: await text("#predictions li span:first-child"),
      shares: await text("#predictions li span:last-child"),
      time: (await text("#time"))[0],
      status: (await text("#status"))[0],
    });
  }
  return seen;
}

// What a file of the site gives for each example.
function outputs(page, file, { loseGpu = false } = {}) {
  return page.evaluate(
    async ([file, loseGpu]) => {
      const { Classifier } = await import("./classifier.js");
      const { getWebGpuDevice } = await import("@litertjs/core");
      const { examples, labels } = await (await fetch("site.json")).json();
      const progress = [];
      const onProgress = (share) => progress.push(share);
      const classifier = await Classifier.load(file, { classes: labels.length, onProgress });
      const seen = [];
      for (const { url } of examples) {
        const bitmap = await createImageBitmap(await (await fetch(url)).blob());
        const { width, height } = bitmap;
        const context = new OffscreenCanvas(width, height).getContext("2d");
        context.drawImage(bitmap, 0, 0);
        const image = context.getImageData(0, 0, width, height);
        const { probabilities, attention } = await classifier.classify(image);
        seen.push({
          engine: classifier.engine,
          probabilities: Array.from(probabilities),
          attention: attention && Array.from(attention.values),
        });
        if (loseGpu) getWebGpuDevice().destroy();
      }
      return { progress: progress.at(-1), examples: seen };
    },
    [file, loseGpu],
  );
}

// Drops or pastes a file.
function give(page, event, name, type) {
  return page.evaluate(
    ([event, name, type]) => {
      const data = new DataTransfer();
      if (name) data.items.add(new File(["no image"], name, { type }));
      document.dispatchEvent(
        event === "drop"
          ? new DragEvent("drop", { dataTransfer: data, cancelable: true })
          : new ClipboardEvent("paste", { clipboardData: data }),
      );
    },
    [event, name, type],
  );
}

async function cpu(page, { context, messages }) {
  const seen = { pages: await predictions(page) };
  seen.width = await page.evaluate(() => document.documentElement.scrollWidth);
  seen.isolated = await page.evaluate(() => crossOriginIsolated);
  const label = page.locator("#predictions li span").first();
  seen.bidi = await label.evaluate((one) => getComputedStyle(one).unicodeBidi);
  seen.outputs = {};
  for (const file of ["model.tflite", "bytes.tflite"])
    seen.outputs[file] = await outputs(page, file);
  seen.heatmap = { opacity: [] };
  for (const key of ["Home", "End"]) {
    await page.getByLabel("Where the model looks").press(key);
    const style = await page.locator("#heatmap").evaluate((one) => getComputedStyle(one).opacity);
    seen.heatmap.opacity.push(style);
  }
  // From no attention, which is blue, to the most, which is red.
  seen.heatmap.reds = await page.evaluate(() => {
    const { width, height } = document.getElementById("heatmap");
    const context = document.getElementById("heatmap").getContext("2d");
    const reds = context.getImageData(0, 0, width, height).data.filter((_, i) => i % 4 === 0);
    return [Math.min, Math.max].map((extreme) => reds.reduce((a, b) => extreme(a, b)));
  });
  await context.grantPermissions(["clipboard-read", "clipboard-write"]);
  await page.getByRole("button", { name: "Share" }).click();
  seen.shared = await page.evaluate(() => navigator.clipboard.readText());
  seen.messages = [...messages];
  seen.images = await images(page);
  seen.models = await models(page, [
    ["page.js", 5],
    ["foreign.tflite", 5],
    ["model.tflite", 4],
  ]);
  return seen;
}

async function gpu(page, { messages }) {
  return {
    pages: await predictions(page),
    refused: await outputs(page, "refused.tflite"),
    taken: await outputs(page, "taken.tflite", { loseGpu: true }),
    messages,
  };
}

async function images(page) {
  const errors = [];
  await page.getByLabel("Choose an image").setInputFiles({
    name: "notes.txt",
    mimeType: "text/plain",
    buffer: Buffer.from("no image"),
  });
  errors.push(await error(page));
  for (const event of ["drop", "paste"]) {
    await give(page, event, "logo.svg", "image/svg+xml");
    errors.push(await error(page));
    await give(page, event);
    errors.push(await error(page));
  }
  const accept = await page.locator("#file").getAttribute("accept");
  const ways = await page.locator("#ways").isVisible(); // after an image, too
  return { errors, accept, ways };
}

// What the classifier says about files of the site with numbers of classes.
function models(page, files) {
  return page.evaluate(async (files) => {
    const { Classifier } = await import("./classifier.js");
    const errors = {};
    for (const [name, classes] of files)
      errors[name] = await Classifier.load(name, { classes }).catch(({ message }) => message);
    return errors;
  }, files);
}

async function offline(page, { context }) {
  const kept = () =>
    page.evaluate(async () => {
      const [name, ...others] = await caches.keys();
      const requests = await (await caches.open(name)).keys();
      return [others, requests.map(({ url }) => url)];
    });
  const model = () => page.locator("#model").innerText();
  const reload = async () => {
    await page.reload();
    await page.waitForSelector(READY);
    return [await model(), await page.locator("#predictions li").count()];
  };
  const seen = {};
  await page.waitForSelector("#offline:visible");
  seen.kept = await kept();
  await context.setOffline(true);
  seen.reachable = await page.evaluate(() => fetch("../new").then(Boolean, () => false));
  seen.reloaded = await reload();
  await context.setOffline(false);
  symlinkSync(next, `${link}-next`);
  renameSync(`${link}-next`, link);
  seen.next = await reload();
  await page.waitForSelector("#offline:visible");
  seen.nextKept = await kept();
  await context.setOffline(true);
  seen.nextReloaded = await reload();
  return seen;
}

// One bit of the model is wrong.
async function damage(context) {
  await context.route("**/model.tflite", async (route) => {
    const response = await route.fetch();
    const body = await response.body();
    body[body.length >> 1] ^= 1;
    await route.fulfill({ response, body });
  });
}

// Hosts of single pages send a page instead of a missing file.
async function lose(context) {
  await context.route("**/site.json", (route) => route.fulfill({ body: "<!doctype html>" }));
}

const seen = {
  cpu: await visit(cpu),
  gpu: await visit(gpu, { gpu: true }),
  damaged: await visit(error, { prepare: damage }),
  notFound: await visit(error, { prepare: lose }),
  file: await visit(error, { address: `file://${link}/index.html` }),
  offline: await visit(offline),
};
await browser.close();
console.log(JSON.stringify(seen));
