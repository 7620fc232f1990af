// Loads files of the page.

// What to do about files that are wrong.
export const REMEDY =
  "Upload the whole folder of the page again, or make a new one with " +
  "python -m export web --model FILE --output FOLDER.";

// The response to a request.
export async function get(url) {
  const response = await fetch(url).catch(() => ({ statusText: "no connection" }));
  if (!response.ok) {
    const reason = [response.status, response.statusText].filter(Boolean).join(" ");
    throw new Error(`${url} could not be loaded (${reason}). Reload the page.`);
  }
  return response;
}

// The content of a JSON file.
export async function getJson(url) {
  const response = await get(url);
  return response.json().catch(() => {
    throw new Error(`${url} is damaged. ${REMEDY}`);
  });
}

// The bytes of a file. Calls `onProgress` with the loaded share, in 0...1.
export async function download(url, onProgress) {
  const response = await get(url);
  const size = Number(response.headers.get("content-length"));
  const parts = [];
  let loaded = 0;
  for (const reader = response.body.getReader(); ; ) {
    const { done, value } = await reader.read().catch(() => {
      throw new Error(`${url} could not be loaded (the connection ended). Reload the page.`);
    });
    if (done) break;
    parts.push(value);
    loaded += value.length;
    if (size) onProgress(Math.min(1, loaded / size));
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

// Whether bytes have this SHA-256, which only pages on HTTPS or localhost can tell.
export async function matches(bytes, sha256) {
  if (!sha256 || !crypto.subtle) return true;
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  const hexadecimal = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0"));
  return hexadecimal.join("") === sha256;
}
