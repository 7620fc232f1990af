// Keeps the page for visits without a network, with service-worker.js.

// Keeps the page and all of its files that this visit has loaded. A new version
// has a folder and a cache of its own, and removes older ones when it is whole.
export async function keepOffline() {
  const folder = document.baseURI;
  const page = parent(folder);
  await navigator.serviceWorker.register(`${page}service-worker.js`);
  const loaded = performance
    .getEntriesByType("resource")
    .map(({ name }) => name)
    .filter((name) => name.startsWith(folder));
  const cache = await caches.open(folder);
  const kept = (await cache.keys()).map(({ url }) => url);
  await cache.addAll([...new Set([page, ...loaded]).difference(new Set(kept))]);
  for (const name of await caches.keys())
    if (name !== folder && parent(name) === page) await caches.delete(name);
}

// The folder that contains a folder.
function parent(folder) {
  return folder.replace(/[^/]*\/$/, "");
}
