// Requests to the service this page came from.

const MOST_IMAGES = 32, MOST_BYTES = 64 * 2 ** 20; // of one request: small ones can be cancelled soon

let key = "";
export const setKey = (text) => { key = text; };

async function ask(path, options = {}) {
  const headers = { ...options.headers, ...(key ? { "X-API-Key": key } : {}) };
  for (;;) {
    const answer = await fetch(path, { ...options, headers });
    if (answer.ok) return answer;
    if (answer.status === 503 && answer.headers.get("Retry-After")) {
      await pause(Number(answer.headers.get("Retry-After")), options.signal);
      continue;
    }
    const problem = await answer.json().catch(() => ({}));
    throw Object.assign(new Error(problem.detail || `the service answered ${answer.status}`), { status: answer.status });
  }
}

function pause(seconds, signal) {
  return new Promise((done, fail) => {
    const timer = setTimeout(done, 1000 * seconds);
    signal?.addEventListener("abort", () => { clearTimeout(timer); fail(signal.reason); }, { once: true });
  });
}

export const model = async () => (await ask("/v1/model")).json();

function formOf(items) {
  const form = new FormData();
  for (const item of items) {
    form.append("files", item.file, item.name);
    form.append("prompt", item.prompt);
  }
  return form;
}

/** Score items in requests of a bounded size; onRow(item, row) as each is ready. */
export async function score(items, signal, onRow) {
  for (let start = 0; start < items.length;) {
    let end = start, bytes = 0;
    while (end < items.length && end - start < MOST_IMAGES && (end === start || bytes + items[end].file.size <= MOST_BYTES)) {
      bytes += items[end++].file.size;
    }
    await scoreSome(items.slice(start, end), signal, onRow);
    start = end;
  }
}

async function scoreSome(items, signal, onRow) {
  const answer = await ask("/v1/score", {
    method: "POST", body: formOf(items), signal, headers: { Accept: "application/x-ndjson" },
  });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "", at = 0;
  for (;;) {
    const { done, value } = await reader.read();
    const lines = (rest + (value ?? "")).split("\n");
    rest = lines.pop();
    for (const line of lines) onRow(items[at++], JSON.parse(line));
    if (done) break;
  }
  if (at < items.length) throw new Error(`the service ended after ${at} of ${items.length} images`);
}

async function json(path, items, fields = {}) {
  const form = formOf(items);
  for (const [name, value] of Object.entries(fields)) form.append(name, value);
  return (await ask(path, { method: "POST", body: form })).json();
}

export const compare = (first, second, by) => json("/v1/compare", [first, second], { by });
export const explain = (item) => json("/v1/explain", [item]);
