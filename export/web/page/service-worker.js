// Answers from the files that offline.js keeps, and keeps none itself.

const page = registration.scope;

onfetch = (event) => {
  const { method, mode, url } = event.request;
  const isPage = [page, `${page}index.html`].includes(url.split(/[?#]/)[0]);
  if (isPage && mode === "navigate") event.respondWith(newest(url));
  if (!isPage && method === "GET") event.respondWith(kept(event.request));
};

// The page on the server decides the version; without a network, the kept one.
async function newest(url) {
  try {
    const options = { cache: "no-store", redirect: "manual" };
    return await fetch(url, { ...options, signal: AbortSignal.timeout(5000) });
  } catch {
    return (await caches.match(page)) ?? Response.error();
  }
}

// A file of a version never changes: its folder is named after the content.
async function kept(request) {
  return (await caches.match(request)) ?? fetch(request);
}
