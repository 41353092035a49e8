// The gallery: one card an image, its thumbnail drawn when it comes into view.

const THUMB = 320;

export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children.filter((child) => child !== null));
  return made;
}

const waiting = new WeakMap();
const watcher = new IntersectionObserver((seen) => {
  for (const { isIntersecting, target } of seen) {
    if (!isIntersecting) continue;
    watcher.unobserve(target);
    draw(target, waiting.get(target));
  }
}, { rootMargin: "400px" });

// Kept as a small file, not as pixels: a thousand of those fill the memory of a browser.
async function draw(place, item) {
  try {
    const whole = await createImageBitmap(item.file), side = Math.min(whole.width, whole.height), small = Math.min(side, THUMB);
    const canvas = new OffscreenCanvas(small, small), brush = canvas.getContext("2d");
    brush.imageSmoothingQuality = "high";
    brush.drawImage(whole, (whole.width - side) / 2, (whole.height - side) / 2, side, side, 0, 0, small, small);
    whole.close();
    item.url = URL.createObjectURL(await canvas.convertToBlob({ type: "image/webp", quality: 0.9 }));
    place.append(element("img", { src: item.url, alt: "" }));
  } catch {
    place.append(element("span", { className: "none", textContent: "no preview in this browser" }));
  }
}

/** Thumbnail of an item, made once. */
function thumbnail(item) {
  if (item.row.status !== "ok") return element("span", { className: "none", textContent: "no image" });
  if (!item.thumbnail) {
    item.thumbnail = element("span", { className: "thumbnail" });
    waiting.set(item.thumbnail, item);
    watcher.observe(item.thumbnail);
  }
  return item.thumbnail;
}

/** Free what the thumbnails of items that are gone take. */
export function forget(items) {
  for (const { thumbnail: place, url } of items) {
    if (place) watcher.unobserve(place);
    if (url) URL.revokeObjectURL(url);
  }
}

/** Draw a whole image, at most `most` pixels wide. */
export async function drawWhole(canvas, file, most = 1024) {
  const whole = await createImageBitmap(file), scale = Math.min(1, most / whole.width);
  canvas.width = Math.round(whole.width * scale);
  canvas.height = Math.round(whole.height * scale);
  canvas.getContext("2d").drawImage(whole, 0, 0, canvas.width, canvas.height);
  const size = [whole.width, whole.height];
  whole.close();
  return size;
}

export const shown = (value) => (typeof value === "number" ? value.toFixed(3) : "–");

/** The 90 % interval and the MOS within the scale of the opinions. */
function interval(row, target, scale) {
  const low = row[`${target}_low`], high = row[`${target}_high`], mos = row[`${target}_mos`];
  if (typeof low !== "number" || !scale) return null;
  const place = (value) => `${Math.max(0, Math.min(100, (100 * (value - scale[0])) / (scale[1] - scale[0])))}%`;
  const bar = element("span", { className: "bar", title: `MOS ${mos.toFixed(2)}, 90 % between ${low.toFixed(2)} and ${high.toFixed(2)}` });
  const range = element("i"), point = element("b");
  range.style.left = place(low);
  range.style.right = `calc(100% - ${place(high)})`;
  point.style.left = place(mos);
  bar.append(range, point);
  return bar;
}

export function facts(row, target, scale) {
  if (row.status !== "ok") return element("span", { className: "reason", textContent: row.reason });
  const label = row[`${target}_label`];
  return element("span", {},
    element("span", { className: "numbers" },
      element("span", { className: "number", textContent: shown(row[target]) }),
      label ? element("span", { className: `label ${label}`, textContent: label }) : null),
    interval(row, target, scale));
}

/** Card of an item, made anew only where what it shows has changed; `act` has open(item) and pick(item). */
export function card(item, target, scale, act) {
  if (item.card && item.shown?.row === item.row && item.shown.target === target) return item.card;
  const open = element("button", { type: "button", className: "open" },
    thumbnail(item),
    element("span", { className: "facts" },
      element("span", { className: "name", textContent: item.name, title: item.name }),
      facts(item.row, target, scale)));
  open.setAttribute("aria-label", `${item.name}, ${target} ${shown(item.row[target])}`);
  open.addEventListener("click", () => act.open(item));
  const pick = element("button", { type: "button", className: "pick", title: "pick for comparison" });
  pick.setAttribute("aria-label", `pick ${item.name}`);
  pick.addEventListener("click", () => act.pick(item));
  item.card = element("article", { className: "card" }, open, pick);
  item.shown = { row: item.row, target };
  mark(item);
  return item.card;
}

/** Show whether an item is picked. */
export function mark(item) {
  if (!item.card) return;
  const button = item.card.querySelector(".pick");
  item.card.classList.toggle("picked", item.picked);
  button.textContent = item.picked ? "✓" : "+";
  button.setAttribute("aria-pressed", String(item.picked));
}
