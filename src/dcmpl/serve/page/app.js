// The page: what was dropped, what is shown of it, and the keyboard.

import * as client from "./client.js";
import { card, element, forget, mark } from "./cards.js";
import { showImage, showPair } from "./dialogs.js";
import { csv, dropped, paired, save, zip } from "./files.js";

const $ = (id) => document.getElementById(id);
const LABELS = ["excellent", "good", "fair", "poor", "bad"];

let known = { targets: ["quality"], scales: {} };
let items = [], order = [], working = null;

function trouble(text) {
  $("trouble").hidden = !text;
  $("trouble").textContent = text;
}

async function begin() {
  try {
    known = await client.model();
  } catch (error) {
    if (error.status === 401) $("key-field").hidden = false;
    else trouble(error.message);
    return;
  }
  trouble("");
  $("model").textContent = `${known.about.model}, version ${known.version}; ` +
    (known.reads ? "alignment reads the prompt" : "alignment is judged from the image alone");
  $("sort").replaceChildren(...known.targets.map((name) => element("option", { value: name, textContent: name })),
    element("option", { value: "", textContent: "name" }));
  $("label").replaceChildren(...["all", ...LABELS, "error"].map((name) => element("option", { value: name, textContent: name })));
}

const target = () => $("sort").value || known.targets[0];
const scale = () => known.scales[target()];

// Scoring

async function take(found) {
  const prompt = $("prompt").value.trim();
  const { images, unread } = await paired(found, prompt);
  if (!images.length) return;
  items.push(...images.map((image) => ({ ...image, row: null, picked: false })));
  await scoreAll();
  if (unread.length) {
    const told = `no prompt read from ${unread.join(", ")}: expected at most 64 KiB of UTF-8`;
    trouble([$("trouble").textContent, told].filter(Boolean).join("; "));
  }
}

async function scoreAll() {
  if (working) return; // the loop below takes what has come since
  working = new AbortController();
  $("work").hidden = false;
  trouble("");
  const began = performance.now();
  let done = 0;
  try {
    for (let left; (left = items.filter((item) => !item.row)).length;) {
      await client.score(left, working.signal, (item, row) => {
        item.row = row;
        progress(++done, items.filter((each) => !each.row).length, began);
      });
    }
  } catch (error) {
    for (const item of items) if (!item.row) Object.assign(item, item.before); // scored with another prompt
    items = items.filter((item) => item.row);
    if (error.name !== "AbortError") trouble(error.message);
  } finally {
    working = null;
    $("work").hidden = true;
    show();
  }
}

let drawn = 0;
function progress(done, left, began) {
  $("progress").max = done + left;
  $("progress").value = done;
  const seconds = Math.round(((performance.now() - began) / 1000 / done) * left);
  const time = seconds >= 60 ? `${Math.floor(seconds / 60)} min ${seconds % 60} s` : `${seconds} s`;
  $("left").textContent = `${done} of ${done + left}${left ? `, ${time} left` : ""}`;
  if (performance.now() - drawn > 700) { drawn = performance.now(); show(); }
}

// The gallery

function chosen() {
  const least = Number($("threshold").value), label = $("label").value, by = target();
  const fits = (item) => label === "all" || (label === "error" ? item.row.status !== "ok" : item.row[`${by}_label`] === label);
  return items.filter((item) => item.row && fits(item)).map((item) => ({ item, stays: item.row.status === "ok" && item.row[by] >= least }));
}

function show() {
  const by = target(), value = (item) => item.row[by] ?? -1;
  const found = chosen();
  found.sort($("sort").value ? (a, b) => value(b.item) - value(a.item) : (a, b) => a.item.name.localeCompare(b.item.name));
  const groups = new Map();
  for (const each of found) {
    const name = $("group").checked ? each.item.prompt || "no prompt" : "";
    if (!groups.has(name)) groups.set(name, []);
    groups.get(name).push(each);
  }
  const focused = document.activeElement?.closest(".card") && order[cards().indexOf(document.activeElement.closest(".card"))];
  order = [];
  const made = [];
  for (const [name, members] of groups) {
    if (name) made.push(element("h2", { textContent: name }));
    for (const { item, stays } of members) {
      order.push(item);
      made.push(card(item, by, scale(), { open: showOne, pick }));
      item.card.classList.toggle("below", !stays);
    }
  }
  $("gallery").replaceChildren(...made);
  focused?.card?.querySelector(".open")?.focus({ preventScroll: true });
  $("tools").hidden = !items.some((item) => item.row);
  tell();
}

function tell() {
  const staying = chosen().filter(({ stays }) => stays).length;
  $("least").textContent = Number($("threshold").value).toFixed(2);
  $("stay").textContent = `${staying} of ${items.filter((item) => item.row).length} stay`;
  $("compare").disabled = items.filter((item) => item.picked).length !== 2;
  $("csv").disabled = !order.length;
  $("zip").disabled = !staying;
}

function dim() { // the slider moves: no card is made anew
  const stays = new Map(chosen().map((each) => [each.item, each.stays]));
  for (const item of order) item.card.classList.toggle("below", !stays.get(item));
  tell();
}

const cards = () => [...document.querySelectorAll(".card")];

function showOne(item) {
  showImage($("detail"), item, target(), scale(), async (changed, prompt) => {
    const before = { prompt: changed.prompt, row: changed.row };
    Object.assign(changed, { prompt: prompt.trim(), row: null, before });
    $("detail").close();
    await scoreAll();
    if (changed.row && changed.row !== before.row) showOne(changed);
  });
}

function pick(item) {
  item.picked = !item.picked;
  const picked = items.filter((each) => each.picked);
  if (picked.length > 2) picked.find((each) => each !== item).picked = false;
  items.forEach(mark);
  tell();
}

function comparePicked() {
  const [first, second] = items.filter((item) => item.picked);
  if (second) showPair($("pair"), first, second, target(), scale());
}

// What people do

const filesOf = (input) => {
  const found = [...input.files].map((file) => ({ file, name: file.webkitRelativePath || file.name }));
  input.value = "";
  return found;
};
$("files").addEventListener("change", (event) => take(filesOf(event.target)));
$("folder").addEventListener("change", (event) => take(filesOf(event.target)));
$("intake").addEventListener("submit", (event) => event.preventDefault());
$("key").addEventListener("change", () => { client.setKey($("key").value); begin(); });
for (const kind of ["dragenter", "dragover"]) {
  document.addEventListener(kind, (event) => { event.preventDefault(); $("drop").classList.add("over"); });
}
document.addEventListener("dragleave", () => $("drop").classList.remove("over"));
document.addEventListener("drop", async (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  take(await dropped(event.dataTransfer));
});
$("cancel").addEventListener("click", () => working?.abort());
for (const id of ["sort", "label", "group"]) $(id).addEventListener("change", show);
$("threshold").addEventListener("input", dim);
$("compare").addEventListener("click", comparePicked);
$("csv").addEventListener("click", () => save(csv(order.map((item) => item.row)), "scores.csv"));
$("zip").addEventListener("click", async () => {
  const staying = chosen().filter(({ stays }) => stays).map(({ item }) => item);
  save(await zip(staying), "images.zip");
});
$("clear").addEventListener("click", () => { working?.abort(); forget(items); items = []; show(); });

document.addEventListener("keydown", (event) => {
  if (/^(TEXTAREA|INPUT|SELECT)$/.test(event.target.tagName) || document.querySelector("dialog[open]")) return;
  const all = cards(), at = all.indexOf(event.target.closest?.(".card"));
  if (event.key === "c" || event.key === "C") comparePicked();
  const across = all.length > 1 ? all.filter((each) => each.offsetTop === all[Math.max(at, 0)].offsetTop).length : 1;
  const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: across, ArrowUp: -across }[event.key];
  if (step && all.length) {
    event.preventDefault();
    const next = all[at < 0 ? 0 : Math.max(0, Math.min(all.length - 1, at + step))];
    next.querySelector(".open").focus();
    next.scrollIntoView({ block: "nearest" });
  }
  if (event.key === " " && at >= 0) { event.preventDefault(); pick(order[at]); }
});

begin();
