// Opens a site of `python -m export web` in Chromium, uses it as a visitor would,
// and prints what it saw as JSON.
//
//   node classify.mjs URL MODEL...   (other .tflite files of the site)

import chromium from "@sparticuz/chromium";
import { chromium as browserType } from "playwright-core";

const [url, ...models] = process.argv.slice(2);
const browser = await browserType.launch({
  executablePath: await chromium.executablePath(),
  args: ["--no-sandbox"],
});
const page = await browser.newPage({ viewport: { width: 390, height: 844 } });
const seen = { failures: [], pages: [] };
page.on("pageerror", (error) => seen.failures.push(error.message));
page.on("console", (message) => {
  if (message.text().includes("Content Security Policy"))
    seen.failures.push(message.text());
});
await page.goto(url);
await page.waitForSelector("#predictions li, #error:not([hidden])");

const text = (selector) => page.locator(selector).allTextContents();
for (const button of await page.locator("#examples button").all()) {
  await page.evaluate(() => document.getElementById("predictions").replaceChildren());
  await button.press("Enter"); // with the keyboard
  await page.waitForSelector("#predictions li");
  seen.pages.push({
    labels: await text("#predictions li span:first-child"),
    shares: await text("#predictions li span:last-child"),
    time: (await text("#time"))[0],
  });
}
// The page is as wide as the screen.
seen.width = await page.evaluate(() => document.documentElement.scrollWidth);
seen.isolated = await page.evaluate(() => crossOriginIsolated);
seen.attention = [await page.isVisible("#attention")];
await page.getByLabel("Where the model looks").uncheck();
seen.attention.push(await page.isVisible("#attention"));

await page.getByLabel("Choose an image").setInputFiles({
  name: "notes.txt",
  mimeType: "text/plain",
  buffer: Buffer.from("no image"),
});
await page.waitForSelector("#error:not([hidden])");
seen.error = (await text("#error"))[0];

// Outputs of each model for each example.
seen.outputs = await page.evaluate(async (models) => {
  const { Classifier } = await import("./classifier.js");
  const { examples } = await (await fetch("site.json")).json();
  const outputs = {};
  for (const model of models) {
    const shares = [];
    const classifier = await Classifier.load(model, (share) => shares.push(share));
    outputs[model] = { progress: shares.at(-1), examples: [] };
    for (const url of examples) {
      const bitmap = await createImageBitmap(await (await fetch(url)).blob());
      const { width, height } = bitmap;
      const context = new OffscreenCanvas(width, height).getContext("2d");
      context.drawImage(bitmap, 0, 0);
      const image = context.getImageData(0, 0, width, height);
      const { probabilities, attention } = await classifier.classify(image);
      outputs[model].examples.push({
        probabilities: Array.from(probabilities),
        attention: attention && Array.from(attention.values),
      });
    }
  }
  return outputs;
}, models);
await browser.close();
console.log(JSON.stringify(seen));
