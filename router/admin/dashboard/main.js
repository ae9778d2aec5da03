// The page: follows the router's events and shows each part where it belongs.
import { showCards } from "./cards.js";
import { startForms } from "./chat.js";
import { showDecisions } from "./decisions.js";
import { byId, el, show } from "./dom.js";
import { follow, post, setKey } from "./feed.js";
import { count, now, seconds } from "./format.js";
import { showTimeline } from "./timeline.js";

const CHECK_MS = 1000;
const TILES = [
  ["requests", "requests"], ["spills_avoided", "spills avoided"], ["substituted", "substituted"],
  ["below_best", "below best"], ["switches", "switches"],
];
let board = null;

function rate(data) {
  const recent = data.minutes.filter((minute) => minute.at > now() - 120);
  const spent = Math.max(60, recent.length ? now() - recent[0].at : 60);
  return recent.reduce((sum, minute) => sum + minute.tokens, 0) / spent;
}

function showTotals(data) {
  const tile = (value, text, kind = "") => el("div", { class: `tile ${kind}` }, el("b", {}, value), el("span", {}, text));
  const tiles = TILES.map(([key, text]) => tile(count(data.totals[key]), text));
  show("totals", ...tiles, data.totals.spills ? tile(count(data.totals.spills), "spilled loads, unloaded", "bad") : tile(rate(data).toFixed(1), "tokens/s"));
}

function showNotes(data) {
  const found = data.notes.map((text) => el("p", { class: "note" }, text));
  if (!data.ollama.up) found.unshift(el("p", { class: "note bad" }, `Ollama does not answer: ${data.ollama.error || "no connection"}`));
  for (const bar of data.barred) found.push(el("p", { class: "note" }, `${bar.model ?? "Every model"} is not loaded for ${seconds(Math.max(1, bar.until - now()))}: ${bar.why}`));
  show("notes", ...found);
}

function showQueue(data) {
  if (!data.queue.length) return show("queue", el("p", { class: "empty" }, "Nothing waits."));
  const rows = data.queue.slice(0, 12).map((row) => {
    const isLoading = data.loading?.model === row.model;
    const said = isLoading ? "its model is being loaded" : row.model ? "waits for its turn" : "waits for memory";
    const head = el("div", { class: "head" }, el("span", { class: "dim num" }, `${row.position}.`), " ", el("span", { class: "name" }, row.model || "any variant"));
    return el("li", {}, head, el("div", { class: "dim small num" }, `${said}, for ${seconds(Math.max(0, now() - row.since))}${row.team ? ` · ${row.team}` : ""}`));
  });
  if (data.queue.length > rows.length) rows.push(el("li", { class: "dim" }, `and ${data.queue.length - rows.length} more`));
  show("queue", el("ul", { class: "rows" }, ...rows));
}

function showReady(data) {
  const place = byId("ready");
  const [text, kind] = data.draining ? ["draining", "warn"] : data.ready ? ["ready", "good"] : ["not ready", "bad"];
  place.textContent = text;
  place.className = `pill ${kind}`;
  byId("versions").textContent = `${data.version}${data.ollama.version ? ` · Ollama ${data.ollama.version}` : ""}${data.memory === "verify" ? " · verify mode" : ""}`;
  byId("drain").setAttribute("aria-pressed", String(data.draining));
}

function render() {
  if (!board) return;
  showReady(board);
  showTotals(board);
  showNotes(board);
  showCards(board);
  showTimeline(board);
  showQueue(board);
}

function onBoard(data) {
  if (data.error) return show("notes", el("p", { class: "note bad" }, data.error));
  board = data;
  const names = data.installed.map((name) => el("option", { value: name }));
  if (byId("models").children.length !== names.length) byId("models").replaceChildren(...names);
  render();
}

function onState(state) {
  byId("lock").hidden = state !== "locked";
  if (state === "connected") return;
  byId("ready").textContent = state === "locked" ? "locked" : "cannot reach the router";
  byId("ready").className = "pill bad";
}

async function act(event) {
  const button = event.target.closest("button.act");
  if (!button) return;
  const { action, model } = button.dataset;
  const query = new URLSearchParams({ model, ...(action === "release" ? { on: "false" } : {}) });
  const answer = await post(`router/${action === "unload" ? "unload" : "keep"}?${query}`);
  if (!answer.ok) show("notes", el("p", { class: "note bad" }, (await answer.json()).error));
}

function startTheme() {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const apply = () => {
    document.documentElement.dataset.theme = localStorage.getItem("theme") ?? (dark.matches ? "dark" : "light");
  };
  dark.addEventListener("change", apply);
  byId("theme").addEventListener("click", () => {
    localStorage.setItem("theme", document.documentElement.dataset.theme === "dark" ? "light" : "dark");
    apply();
  });
  apply();
}

startTheme();
startForms();
byId("cards").addEventListener("click", act);
byId("drain").addEventListener("click", () => post(`router/drain?on=${byId("drain").getAttribute("aria-pressed") !== "true"}`));
byId("lock").addEventListener("submit", (event) => {
  event.preventDefault();
  setKey(byId("key").value);
  byId("lock").hidden = true;
});
addEventListener("locked", () => {
  byId("lock").hidden = false;
});
setInterval(() => document.hidden || render(), CHECK_MS);
follow({ board: onBoard, decisions: (rows) => Array.isArray(rows) && showDecisions(rows) }, onState);
