// A folder as a tar archive, without reading it: the archive is a Blob of headers and of the files themselves, which the
// browser reads from disk while it sends them. The same files give the same archive, so that an unchanged folder is not built again.

const BLOCK = 512;
// That of the files in built images; the command line packs the same.
const TIME = 315532801;
// Parts of a Blob that are joined at a time.
const PARTS = 1000;

// `files` are `{ path, file }`, folders without a `file`.
export async function pack(files) {
  const sorted = [...files].sort((one, other) => (one.path < other.path ? -1 : 1));
  const blobs = [];
  for (let start = 0; start < sorted.length; start += PARTS) {
    const parts = await Promise.all(sorted.slice(start, start + PARTS).map(entry));
    blobs.push(new Blob(parts.flat()));
  }
  return new Blob([...blobs, new Uint8Array(2 * BLOCK)], { type: "application/x-tar" });
}

async function entry({ path, file }) {
  if (!file) return [header(`${path}/`, 0, 0o755, "5")];
  const executable = await isProgram(file);
  const padding = new Uint8Array((BLOCK - (file.size % BLOCK)) % BLOCK);
  return [header(path, file.size, executable ? 0o755 : 0o644, "0"), file, padding];
}

// Browsers do not tell which files may be run: scripts and programs say so in their first bytes.
async function isProgram(file) {
  const begin = new Uint8Array(await file.slice(0, 4).arrayBuffer());
  const starts = (text) => [...text].every((char, index) => begin[index] === char.charCodeAt(0));
  return starts("#!") || starts("\x7fELF");
}

function header(path, size, mode, kind) {
  const name = new TextEncoder().encode(path);
  const records = [];
  if (name.length > 100) records.push(["path", path]);
  if (size >= 8 ** 11) records.push(["size", size]);
  const plain = block(name.slice(0, 100), Math.min(size, 8 ** 11 - 1), mode, kind);
  if (!records.length) return plain;
  const text = concat(...records.map(([key, value]) => record(key, value)));
  const padding = new Uint8Array((BLOCK - (text.length % BLOCK)) % BLOCK);
  return concat(block(new TextEncoder().encode("pax"), text.length, 0o644, "x"), text, padding, plain);
}

// A ustar header (POSIX.1-1988).
function block(name, size, mode, kind) {
  const bytes = new Uint8Array(BLOCK);
  const put = (offset, text) => bytes.set(new TextEncoder().encode(text), offset);
  const octal = (offset, length, number) => put(offset, number.toString(8).padStart(length - 1, "0"));
  bytes.set(name);
  octal(100, 8, mode);
  octal(108, 8, 0);
  octal(116, 8, 0);
  octal(124, 12, size);
  octal(136, 12, TIME);
  put(148, " ".repeat(8));
  put(156, kind);
  put(257, "ustar\x0000");
  octal(148, 7, bytes.reduce((sum, byte) => sum + byte, 0));
  return bytes;
}

// A pax record counts itself: `LENGTH KEY=VALUE\n`.
function record(key, value) {
  const rest = new TextEncoder().encode(` ${key}=${value}\n`);
  let length = rest.length;
  while (length !== rest.length + String(length).length) length = rest.length + String(length).length;
  return concat(new TextEncoder().encode(String(length)), rest);
}

function concat(...arrays) {
  const all = new Uint8Array(arrays.reduce((sum, array) => sum + array.length, 0));
  let at = 0;
  for (const array of arrays) {
    all.set(array, at);
    at += array.length;
  }
  return all;
}
