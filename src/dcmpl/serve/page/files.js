// Files in and out: what was dropped, a CSV of rows, a zip of images.

/** All files of a drop, those of folders too, with their paths. */
export async function dropped(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return [...transfer.files].map((file) => ({ file, name: file.name }));
  const found = [];
  for (const entry of entries) await walk(entry, found);
  return found;
}

async function walk(entry, found) {
  if (entry.isFile) {
    const file = await new Promise((done, fail) => entry.file(done, fail));
    found.push({ file, name: entry.fullPath.replace(/^\//, "") });
    return;
  }
  const reader = entry.createReader();
  for (;;) { // a reader gives a hundred at a time
    const some = await new Promise((done, fail) => reader.readEntries(done, fail));
    if (!some.length) return;
    for (const each of some.sort((a, b) => a.name.localeCompare(b.name))) await walk(each, found);
  }
}

const stem = (name) => name.replace(/\.[^./]*$/, "");

/** Images with their prompts: that of the text beside one, a.txt beside a.png, or else `prompt`. */
export async function paired(found, prompt) {
  const isText = ({ name }) => /\.(txt|caption)$/i.test(name);
  const stems = new Set(found.filter((each) => !isText(each)).map(({ name }) => stem(name)));
  const beside = found.filter((each) => isText(each) && stems.has(stem(each.name)));
  const texts = new Map(), unread = [];
  const last = ({ name }) => Number(/\.txt$/i.test(name)); // as on the command line, a.txt goes before a.caption
  for (const { file, name } of [...beside].sort((a, b) => last(a) - last(b))) {
    try {
      if (file.size > 65536) throw new RangeError(name);
      const text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer()).trim();
      const sent = new TextEncoder().encode(text.replace(/\r?\n/g, "\r\n")); // as a form sends it
      if (sent.length > 65536) throw new RangeError(name);
      texts.set(stem(name), text);
    } catch {
      unread.push(name);
    }
  }
  const rest = found.filter((each) => !beside.includes(each));
  return { images: rest.map(({ file, name }) => ({ file, name, prompt: texts.get(stem(name)) ?? prompt })), unread };
}

// A cell that a spreadsheet would take for a formula gets a quote in front, as in dcmpl's own files.
function cell(value) {
  if (value === null || value === undefined) return "";
  let text = String(value);
  if (typeof value === "string" && /^['=+\-@\t\r]/.test(text)) text = `'${text}`;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

export function csv(rows) {
  const columns = Object.keys(rows[0]);
  const lines = [columns, ...rows.map((row) => columns.map((name) => row[name]))];
  return new Blob(lines.map((line) => `${line.map(cell).join(",")}\r\n`), { type: "text/csv" });
}

const TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let k = 0; k < 8; k++) n = n & 1 ? (n >>> 1) ^ 0xedb88320 : n >>> 1;
  return n >>> 0;
});

function crc32(bytes) {
  let crc = 0xffffffff;
  for (const byte of bytes) crc = TABLE[(crc ^ byte) & 0xff] ^ (crc >>> 8);
  return (crc ^ 0xffffffff) >>> 0;
}

function record(size, fields) {
  const view = new DataView(new ArrayBuffer(size));
  for (const [at, bytes, value] of fields) bytes === 2 ? view.setUint16(at, value, true) : view.setUint32(at, value, true);
  return new Uint8Array(view.buffer);
}

/** A zip that stores files as they are: images do not shrink. PKWARE APPNOTE 4.3. */
export async function zip(items) {
  const parts = [], central = [], taken = new Set();
  let at = 0;
  for (const { file, name } of items) {
    const bytes = new Uint8Array(await file.arrayBuffer()), encoded = new TextEncoder().encode(single(name, taken));
    const common = [[0, 2, 20], [2, 2, 0x0800], [4, 2, 0], [6, 2, 0], [8, 2, 0x21], [10, 4, crc32(bytes)],
      [14, 4, bytes.length], [18, 4, bytes.length], [22, 2, encoded.length]];
    parts.push(record(30, [[0, 4, 0x04034b50], ...shifted(common, 4)]), encoded, bytes);
    central.push(record(46, [[0, 4, 0x02014b50], [4, 2, 20], ...shifted(common, 6), [42, 4, at]]), encoded);
    at += 30 + encoded.length + bytes.length;
  }
  const size = central.reduce((sum, part) => sum + part.length, 0);
  const end = record(22, [[0, 4, 0x06054b50], [8, 2, items.length], [10, 2, items.length], [12, 4, size], [16, 4, at]]);
  return new Blob([...parts, ...central, end], { type: "application/zip" });
}

const shifted = (fields, by) => fields.map(([at, bytes, value]) => [at + by, bytes, value]);

function single(name, taken) {
  const clean = name.split("/").filter((part) => part && part !== "." && part !== "..").join("/") || "image";
  let found = clean;
  for (let count = 2; taken.has(found); count++) found = clean.replace(/(\.[^./]*)?$/, ` (${count})$1`);
  taken.add(found);
  return found;
}

export function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
