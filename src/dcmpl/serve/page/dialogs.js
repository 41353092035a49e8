// One image with its maps and words; two images side by side.

import * as client from "./client.js";
import { drawWhole, element, facts, shown } from "./cards.js";

function open(dialog, title, ...content) {
  const close = element("button", { type: "button", textContent: "Close" });
  close.addEventListener("click", () => dialog.close());
  dialog.replaceChildren(element("div", { className: "top" }, element("h2", { textContent: title }), close), ...content);
  if (!dialog.open) dialog.showModal();
}

function picture(item, caption) {
  const canvas = element("canvas", { width: 1, height: 1 });
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", item.name);
  drawWhole(canvas, item.file).catch(() => canvas.remove());
  return element("figure", {}, canvas, element("figcaption", {}, caption));
}

function table(row) {
  const body = element("tbody");
  for (const [name, value] of Object.entries(row)) {
    if (value === null || value === "") continue;
    const text = typeof value === "number" && !Number.isInteger(value) ? value.toFixed(4) : String(value);
    body.append(element("tr", {}, element("th", { textContent: name, scope: "row" }), element("td", { textContent: text })));
  }
  return element("table", {}, body);
}

/** One image; `again` scores it with another prompt. */
export function showImage(dialog, item, target, scale, again) {
  const prompt = element("textarea", { rows: 2, value: item.prompt });
  const change = element("button", { type: "button", textContent: "Score with this prompt" });
  change.addEventListener("click", () => again(item, prompt.value));
  const why = element("div", {}), ask = element("button", { type: "button", textContent: "Explain" });
  ask.addEventListener("click", () => explain(item, why, ask));
  const seen = item.row.status === "ok" ? picture(item, facts(item.row, target, scale)) : element("p", { className: "reason", textContent: item.row.reason });
  open(dialog, item.name,
    element("div", { className: "two" }, seen, table(item.row)),
    element("label", {}, "Prompt", prompt), element("p", {}, change, " ", item.row.status === "ok" ? ask : ""), why);
}

async function explain(item, place, button) {
  button.disabled = true;
  place.replaceChildren(element("p", { className: "soft", textContent: "looking at the image piece by piece ..." }));
  try {
    const found = await client.explain(item);
    const maps = element("div", { className: "two" });
    for (const map of found.maps) maps.append(await heat(item, map));
    const words = element("p", { className: "words" });
    for (const [word, gain] of found.words) {
      const chip = element("span", { textContent: `${word} ${gain >= 0 ? "+" : ""}${gain.toFixed(3)}` });
      words.append(chip);
    }
    place.replaceChildren(...[...found.sentences, ...found.notes].map((text) => element("p", { textContent: text })), maps,
      ...(found.words.length ? [element("h2", { textContent: "Score gained without each word of the prompt" }), words] : []));
    place.scrollIntoView({ block: "nearest" });
  } catch (error) {
    place.replaceChildren(element("p", { className: "reason", textContent: error.message }));
    button.disabled = false;
  }
}

// Low values in orange over the image: it shows on dark and bright images alike.
async function heat(item, map) {
  const canvas = element("canvas");
  await drawWhole(canvas, item.file);
  const rows = map.values.length, columns = map.values[0].length, all = map.values.flat();
  const low = Math.min(...all), high = Math.max(...all), layer = element("canvas", { width: columns, height: rows });
  const pixels = layer.getContext("2d").createImageData(columns, rows);
  all.forEach((value, at) => pixels.data.set([255, 96, 0, Math.round(215 * (1 - (value - low) / (high - low || 1)))], 4 * at));
  layer.getContext("2d").putImageData(pixels, 0, 0);
  canvas.getContext("2d").drawImage(layer, 0, 0, canvas.width, canvas.height);
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `${map.name} of ${item.name}`);
  const range = map.relative ? "orange is lower" : `orange is lower: ${low.toFixed(2)} to ${high.toFixed(2)} ${map.units}`;
  return element("figure", {}, canvas, element("figcaption", { textContent: `${map.name}; ${range}` }));
}

/** Two images, and which people would prefer. */
export async function showPair(dialog, first, second, target, scale) {
  const verdict = element("p", { textContent: "comparing ..." });
  const sides = [first, second].map((item) => picture(item, element("span", {}, element("span", { className: "name", textContent: item.name }), facts(item.row, target, scale))));
  open(dialog, `Which has the better ${target}?`, verdict, element("div", { className: "two" }, ...sides));
  if (first.prompt !== second.prompt) {
    verdict.textContent = "Their prompts differ, so nothing is known of people's preference: people compared images of one prompt.";
    return;
  }
  try {
    const found = await client.compare(first, second, target), chance = found.first_is_better;
    const better = chance >= 0.5 ? first : second, likely = 100 * Math.max(chance, 1 - chance);
    verdict.textContent = chance === null ? `${shown(first.row[target])} and ${shown(second.row[target])}; the model does not know how sure that is.`
      : `People prefer ${better.name} with a probability of ${likely > 99 ? "more than 99" : Math.round(likely)} %` +
        (found.call === "too close to call" ? ": too close to call." : ".");
  } catch (error) {
    verdict.className = "reason";
    verdict.textContent = error.message;
  }
}
