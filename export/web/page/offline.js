// Keeps the page for visits without a network, with service-worker.js.

// Keeps the page and all of its files that this visit uses. A new version
// has a folder and a cache of its own, and removes older ones when it is whole.
export async function keepOffline() {
  const folder = document.baseURI;
  const page = parent(folder);
  await navigator.serviceWorker.register(`${page}service-worker.js`);
  const entries = performance.getEntriesByType("resource").map(({ name }) => name);
  const images = Array.from(document.images, ({ src }) => src); // may still load
  const used = [...entries, ...images].filter((url) => url.startsWith(folder));
  const cache = await caches.open(folder);
  const kept = (await cache.keys()).map(({ url }) => url);
  const missing = [...new Set([page, ...used]).difference(new Set(kept))];
  // The browser's own cache may have the page of an older version.
  const cacheOf = (url) => (url === page ? "reload" : "default");
  await cache.addAll(missing.map((url) => new Request(url, { cache: cacheOf(url) })));
  for (const name of await caches.keys())
    if (name !== folder && parent(name) === page) await caches.delete(name);
}

// The folder that contains a folder.
function parent(folder) {
  return folder.replace(/[^/]*\/$/, "");
}
