// The page: follows the router's events and shows each part where it belongs.
import { showCards, took } from "./cards.js";
import { startForms } from "./chat.js";
import { showDecisions } from "./decisions.js";
import { byId, el, show } from "./dom.js";
import { follow, post, setKey } from "./feed.js";
import { count, now, seconds } from "./format.js";
import { showTeams } from "./teams.js";
import { showTimeline } from "./timeline.js";

const CHECK_MS = 1000;
const TILES = [
  ["requests", "request", "requests"], ["spills_avoided", "spill avoided", "spills avoided"],
  ["substituted", "substituted"], ["below_best", "below best"], ["switches", "switch", "switches"],
];
const SPILLS = ["spills", "spilled load, unloaded", "spilled loads, unloaded"];
let board = null;

function rate(data) {
  const recent = data.minutes.filter((minute) => minute.at > now() - 120);
  const spent = Math.max(60, recent.length ? now() - recent[0].at : 60);
  return recent.reduce((sum, minute) => sum + minute.tokens, 0) / spent;
}

function showTotals(data) {
  const tile = (value, text, kind = "") => el("div", { class: `tile ${kind}` }, el("b", {}, value), el("span", {}, text));
  const counted = ([key, one, many = one], kind) => tile(count(data.totals[key]), data.totals[key] === 1 ? one : many, kind);
  const last = data.totals.spills ? counted(SPILLS, "bad") : tile(rate(data).toFixed(1), "tokens/s");
  show("totals", ...TILES.filter(([key]) => data.totals[key] !== null).map((each) => counted(each)), last);
}

function showNotes(data) {
  const found = data.notes.map((text) => el("p", { class: "note" }, text));
  if (!data.ollama.up) found.unshift(el("p", { class: "note bad" }, `Ollama does not answer: ${data.ollama.error || "no connection"}`));
  for (const bar of data.barred) found.push(el("p", { class: "note" }, `${bar.model ?? "Every model"} is not loaded for ${seconds(Math.max(1, bar.until - now()))}: ${bar.why}`));
  show("notes", ...found);
}

/** Return the waiting requests by what they wait for, in the order of the first of each. */
function groups(queue) {
  const found = new Map();
  for (const row of queue) {
    const group = found.get(row.model) ?? { model: row.model, first: row.position, count: 0, since: row.since, teams: new Map() };
    group.count += 1;
    group.since = Math.min(group.since, row.since);
    if (row.team) group.teams.set(row.team, (group.teams.get(row.team) ?? 0) + 1);
    found.set(row.model, group);
  }
  return [...found.values()];
}

function waiting(group, loading) {
  const isLoading = loading?.model === group.model;
  const who = group.count === 1 ? "1 request waits" : `${group.count} requests wait`;
  const what = isLoading ? `for its load, ${took(loading)}` : group.model ? "for a turn" : "for memory";
  const since = seconds(Math.max(0, now() - group.since));
  const facts = [`${who} ${what}`, `${group.count === 1 ? "for" : "the first for"} ${since}`];
  const teams = [...group.teams].filter(([team]) => group.teams.size > 1 || team !== "anonymous").map(([team, number]) => `${team} ${number}`);
  const place = el("span", { class: "when num" }, group.first === 1 ? "next" : `position ${group.first}`);
  const head = el("div", { class: "head" }, el("span", { class: "name" }, group.model || "any variant"), place);
  return el("li", {}, head, el("div", { class: "dim small num" }, [...facts, teams.join(", ")].filter(Boolean).join(" · ")));
}

function showQueue(data) {
  byId("depth").textContent = data.queue.length ? String(data.queue.length) : "";
  if (!data.queue.length) return show("queue", el("p", { class: "empty" }, "Nothing waits."));
  const all = groups(data.queue);
  const rows = all.slice(0, 12).map((group) => waiting(group, data.loading));
  if (all.length > rows.length) rows.push(el("li", { class: "dim" }, `and ${all.length - rows.length} more models`));
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
follow({ board: onBoard, decisions: (rows) => Array.isArray(rows) && showDecisions(rows), teams: showTeams }, onState);
