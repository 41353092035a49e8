// The API in words, from the same description that programs read.

import { element } from "./cards.js";

const EXAMPLES = {
  "/v1/score": "curl -F files=@a.png -F files=@b.png -F prompt='a red fox' ORIGIN/v1/score",
  "/v1/rank": "curl -F files=@a.png -F files=@b.png -F prompt='a red fox' -F by=quality ORIGIN/v1/rank",
  "/v1/compare": "curl -F files=@a.png -F files=@b.png -F prompt='a red fox' ORIGIN/v1/compare",
  "/v1/explain": "curl -H 'Accept: image/png' -F files=@a.png -F prompt='a red fox' ORIGIN/v1/explain -o why.png",
  "/v1/model": "curl ORIGIN/v1/model",
};

function table(entries) {
  const body = element("tbody");
  for (const [name, text] of entries) {
    body.append(element("tr", {}, element("th", { scope: "row", textContent: name }), element("td", { textContent: text })));
  }
  return element("table", {}, body);
}

function fieldsOf(schema, schemas) {
  const whole = schema?.$ref ? schemas[schema.$ref.split("/").pop()] : schema;
  return Object.entries(whole?.properties ?? {}).map(([name, field]) => [name, field.description ?? ""]);
}

function described(path, method, call, schemas) {
  const content = call.requestBody?.content ?? {};
  const parts = [element("h2", { textContent: `${method.toUpperCase()} ${path}` }), element("p", { textContent: call.description ?? call.summary })];
  if (EXAMPLES[path]) parts.push(element("pre", { textContent: EXAMPLES[path].replaceAll("ORIGIN", location.origin) }));
  for (const [kind, { schema }] of Object.entries(content)) {
    parts.push(element("h3", { textContent: kind }), table(fieldsOf(schema, schemas)));
  }
  const answers = Object.entries(call.responses).map(([status, answer]) => [status, answer.description]);
  return element("section", {}, ...parts, element("h3", { textContent: "answers" }), table(answers));
}

const found = await (await fetch("/openapi.json")).json();
document.getElementById("about").textContent = `${found.info.summary} Version ${found.info.version}.`;
for (const [path, methods] of Object.entries(found.paths)) {
  for (const [method, call] of Object.entries(methods)) {
    document.getElementById("paths").append(described(path, method, call, found.components?.schemas ?? {}));
  }
}
