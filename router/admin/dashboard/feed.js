// Talks to the router. The stream is read by fetch and not by EventSource, which could send no admin key.

const AGAIN_MS = 2000;
let key = sessionStorage.getItem("admin-key") || "";

export function setKey(value) {
  key = value;
  sessionStorage.setItem("admin-key", value);
}

function headers() {
  return key ? { authorization: `Bearer ${key}`, "x-router-admin": key } : {};
}

/** Return [status, data] of a GET. */
export async function get(path) {
  const answer = await fetch(path, { headers: headers() });
  return [answer.status, await answer.json()];
}

/** Return the response to a POST. The window hears "locked" if it needs an admin key; reading may need none. */
export async function post(path, body = undefined, signal = undefined) {
  const answer = await fetch(path, { method: "POST", headers: headers(), body, signal });
  if (answer.status === 401) dispatchEvent(new Event("locked"));
  return answer;
}

/** Yield the lines of a response as they come. */
export async function* lines(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    const parts = (rest + value).split("\n");
    rest = parts.pop();
    yield* parts;
  }
  if (rest) yield rest;
}

/** Pass each event to `on[name](data)` for as long as the page is open; `onState` hears connected, lost or locked. */
export async function follow(on, onState) {
  for (;;) {
    try {
      const answer = await fetch("router/events", { headers: headers() });
      onState(answer.ok ? "connected" : answer.status === 401 || answer.status === 403 ? "locked" : "lost");
      let name = "";
      for await (const line of answer.ok ? lines(answer) : []) {
        if (line.startsWith("event: ")) name = line.slice(7);
        else if (line.startsWith("data: ")) on[name]?.(JSON.parse(line.slice(6)));
      }
    } catch {
      onState("lost");
    }
    await new Promise((again) => setTimeout(again, AGAIN_MS));
  }
}
