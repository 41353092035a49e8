// The gallery: one card an image, its thumbnail drawn when it comes into view.

const THUMB = 320;

export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children.filter((child) => child !== null));
  return made;
}

const waiting = new Map();
const watcher = new IntersectionObserver((seen) => {
  for (const { isIntersecting, target } of seen) {
    if (isIntersecting && waiting.has(target)) {
      draw(target, waiting.get(target));
      waiting.delete(target);
      watcher.unobserve(target);
    }
  }
}, { rootMargin: "400px" });

async function draw(canvas, file) {
  try {
    const whole = await createImageBitmap(file), scale = Math.min(1, THUMB / Math.min(whole.width, whole.height));
    const side = Math.round(Math.min(whole.width, whole.height));
    canvas.width = canvas.height = Math.max(1, Math.round(side * scale));
    canvas.getContext("2d").drawImage(whole, (whole.width - side) / 2, (whole.height - side) / 2, side, side, 0, 0, canvas.width, canvas.height);
    whole.close();
  } catch {
    canvas.replaceWith(element("span", { className: "none", textContent: "no preview in this browser" }));
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

/** Card of an item; `act` has open(item) and pick(item). */
export function card(item, target, scale, act) {
  const preview = item.row.status === "ok" ? element("canvas", { width: 1, height: 1 })
    : element("span", { className: "none", textContent: "no image" });
  const open = element("button", { type: "button", className: "open" },
    preview,
    element("span", { className: "facts" },
      element("span", { className: "name", textContent: item.name, title: item.name }),
      facts(item.row, target, scale)));
  open.setAttribute("aria-label", `${item.name}, ${target} ${shown(item.row[target])}`);
  open.addEventListener("click", () => act.open(item));
  const pick = element("button", { type: "button", className: "pick", textContent: item.picked ? "✓" : "+", title: "pick for comparison" });
  pick.setAttribute("aria-label", `pick ${item.name}`);
  pick.setAttribute("aria-pressed", String(item.picked));
  pick.addEventListener("click", () => act.pick(item));
  const made = element("article", { className: "card" }, open, pick);
  made.classList.toggle("picked", item.picked);
  if (preview.tagName === "CANVAS") {
    waiting.set(preview, item.file);
    watcher.observe(preview);
  }
  return made;
}

/** Forget thumbnails that were never drawn. */
export function forget() {
  watcher.disconnect();
  waiting.clear();
}
