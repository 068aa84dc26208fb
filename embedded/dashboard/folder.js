// What a user hands in: an archive as it is, or a folder without what is not to be sent.

// Not sent with a folder: builds fetch and make these themselves.
const LEFT_OUT = [".git", "node_modules"];
// In the syntax of `.gitignore`; the command line reads the same file.
const IGNORE_FILE = ".epinioignore";
const ARCHIVE = /\.(tar|tar\.gz|tgz|tar\.xz|txz|tar\.bz2|tbz2?|tar\.zst|tzst|zip)$/i;

// What was dropped: `{ name, archive }` or `{ name, files, left }`. Has to be called before the event is over.
export async function dropped(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (entries.length === 1 && entries[0].isFile) {
    const file = await fileOf(entries[0]);
    return isArchive(file) ? ofArchive(file) : folder("", [{ path: file.name, file }]);
  }
  const [name, inside] = entries.length === 1 ? [entries[0].name, await children(entries[0])] : ["", entries];
  const [found, left] = [[], new Set()];
  for (const entry of inside) await walk(entry, "", found, left);
  return folder(name, found, left);
}

// What an input with `webkitdirectory` has: the name of the folder is in front of every path.
export function chosen(list) {
  const [found, left] = [[], new Set()];
  for (const file of list) {
    const [, ...path] = file.webkitRelativePath.split("/");
    const not = path.find((part) => LEFT_OUT.includes(part));
    if (not) left.add(not);
    else found.push({ path: path.join("/"), file });
  }
  return folder(list[0]?.webkitRelativePath.split("/")[0] ?? "", found, left);
}

export function isArchive(file) {
  return ARCHIVE.test(file.name);
}

export function ofArchive(file) {
  return { name: appName(file.name.replace(ARCHIVE, "")), archive: file };
}

// The nearest name that an application may have.
export function appName(text) {
  return text.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^[^a-z]+/, "").slice(0, 63).replace(/-+$/, "");
}

async function folder(name, found, left = new Set()) {
  const rules = [];
  for (const { path, file } of found) {
    if (file && path.split("/").pop() === IGNORE_FILE) {
      rules.push(...parse(await file.text(), path.slice(0, -IGNORE_FILE.length)));
    }
  }
  // Those of folders further down have the last word.
  rules.sort((one, other) => one.base.length - other.base.length);
  const files = found.filter(({ path, file }) => !isIgnored(path, !file, rules));
  const ignored = found.length - files.length;
  if (ignored) left.add(`${ignored} named by ${IGNORE_FILE}`);
  return { name: appName(name), files, left: [...left] };
}

async function walk(entry, above, found, left) {
  const path = above + entry.name;
  if (LEFT_OUT.includes(entry.name)) return void left.add(entry.name);
  if (entry.isFile) return void found.push({ path, file: await fileOf(entry) });
  const inside = await children(entry);
  // A folder that has something in it is made with that.
  if (!inside.length) found.push({ path });
  for (const child of inside) await walk(child, `${path}/`, found, left);
}

function fileOf(entry) {
  return new Promise((resolve, reject) => entry.file(resolve, reject));
}

// Browsers give a hundred at a time.
async function children(folder) {
  const [reader, all] = [folder.createReader(), []];
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) return all;
    all.push(...some);
  }
}

// gitignore(5), for the folder `base` ("" or "a/b/").
export function parse(text, base = "") {
  return text.split(/\r?\n/).flatMap((line) => {
    let pattern = line.replace(/(?<!\\)\s+$/, "");
    if (!pattern || pattern.startsWith("#")) return [];
    const keep = pattern.startsWith("!");
    if (keep) pattern = pattern.slice(1);
    const folders = pattern.endsWith("/");
    if (folders) pattern = pattern.slice(0, -1);
    const anchored = pattern.includes("/");
    try {
      return [{ base, keep, folders, test: regular(pattern.replace(/^\//, ""), anchored) }];
    } catch {
      // A range that is none, as `[z-a]`: it matches nothing.
      return [];
    }
  });
}

function regular(pattern, anchored) {
  const parts = pattern.match(/\\.|\[!?\]?[^\]]*\]|^\*\*\/|\/\*\*\/|\/\*\*$|\*+|\?|[^\\*?[/]+|./g) ?? [];
  const translated = parts.map((part) => {
    if (part === "**/") return "(?:.*/)?";
    if (part === "/**/") return "/(?:.*/)?";
    if (part === "/**") return "/.*";
    if (part.startsWith("*")) return "[^/]*";
    if (part === "?") return "[^/]";
    if (part.startsWith("[") && part.length > 1) return part.replace(/^\[!/, "[^").replace(/\\/g, "\\\\");
    return part.replace(/^\\/, "").replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
  });
  return new RegExp(`^${anchored ? "" : "(?:.*/)?"}${translated.join("")}$`);
}

// What is in a folder that is ignored is ignored, whatever is said of it.
export function isIgnored(path, isFolder, rules) {
  const parts = path.split("/");
  return parts.some((_, index) => {
    const [part, folder] = [parts.slice(0, index + 1).join("/"), isFolder || index < parts.length - 1];
    const last = rules.findLast(
      (rule) => part.startsWith(rule.base) && (folder || !rule.folders) && rule.test.test(part.slice(rule.base.length)),
    );
    return last && !last.keep;
  });
}
