// The chat and the explanation: ask a model, and see beside the answer which variant was chosen and why.
import { byId, el } from "./dom.js";
import { verdicts } from "./decisions.js";
import { get, lines, post } from "./feed.js";

let current = null;

function say(text, kind = "") {
  const place = byId("chosen");
  place.hidden = false;
  place.replaceChildren(el("span", { class: kind }, text));
}

function decision(router, asked) {
  const variant = router.model;
  const reason = router.reason?.replace(/^fallback: /, "");
  if (!variant || variant === asked) return say(`${asked} itself answers${reason ? `: ${reason}` : ""}`);
  say(`${asked} → ${variant}${reason ? `: ${reason}` : ""}`);
}

function add(text, kind = "") {
  const place = byId("answer");
  const last = place.lastChild;
  if (last && last.className === kind) last.textContent += text;
  else place.append(el("span", { class: kind }, text));
}

function part(data, asked) {
  if (data.router) return decision(data.router, asked);
  if (data.error) return say(data.error, "bad");
  if (data.message?.thinking) add(data.message.thinking, "thinking");
  if (data.message?.content) add(data.message.content);
}

/** Return the data of a line; nothing for the half of one, after which the next line says what broke off. */
function parsed(line) {
  try {
    return JSON.parse(line);
  } catch {
    return {};
  }
}

async function send(event) {
  event.preventDefault();
  const { model, message } = Object.fromEntries(new FormData(event.target));
  current?.abort();
  current = new AbortController();
  byId("answer").replaceChildren();
  byId("stop").hidden = false;
  say("waiting for a turn …");
  try {
    const body = JSON.stringify({ model, messages: [{ role: "user", content: message }] });
    const answer = await post("router/chat", body, current.signal);
    for await (const line of lines(answer)) if (line) part(parsed(line), model);
  } catch (error) {
    if (error.name !== "AbortError") say(`no answer: ${error.message}`, "bad");
    else say("stopped");
  }
  byId("stop").hidden = true;
}

async function explain(event) {
  event.preventDefault();
  const query = new URLSearchParams([...new FormData(event.target)].filter(([, value]) => value));
  const [status, found] = await get(`router/explain?${query}`);
  const place = byId("explanation");
  if (status !== 200) return place.replaceChildren(el("p", { class: "note bad" }, found.error));
  const head = found.chosen ? `${found.chosen} would serve it: ${found.reason}` : `Nothing would serve it: ${found.reason}`;
  const between = found.between ? el("p", { class: "dim small" }, found.between) : null;
  const on = found.backend ? el("p", { class: "dim small" }, `on ${found.backend}`) : null;
  const others = (found.ranking ?? []).slice(1).flatMap(elsewhere);
  const denied = found.denied.length ? el("p", { class: "dim small" }, `denied: ${found.denied.join(", ")}`) : null;
  const parts = [el("p", { class: "chosen" }, head), between, denied, on, verdicts(found.variants, found.chosen), ...others];
  place.replaceChildren(...parts.filter(Boolean));
}

/** Return the verdicts of a backend that would not serve it, and why it would not. */
function elsewhere(ranked) {
  const table = ranked.variants.length ? verdicts(ranked.variants, null) : null;
  return [el("p", { class: "dim small" }, `on ${ranked.backend}: ${ranked.reason}`), table];
}

export function startForms() {
  byId("chat").addEventListener("submit", send);
  byId("stop").addEventListener("click", () => current?.abort());
  byId("explain").addEventListener("submit", explain);
}
