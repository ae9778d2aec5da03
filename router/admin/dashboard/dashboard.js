"use strict";
// Shows state and decisions generically: lists of objects as tables, other objects as rows of facts. Model names come
// from clients, so all values become text nodes and never markup.

const REFRESH_MS = 2000;

function element(tag, ...children) {
  const made = document.createElement(tag);
  made.append(...children);
  return made;
}

function label(key) {
  return key.replace(/_bytes$/, " GiB").replace(/_s$/, " s").replaceAll("_", " ");
}

function shown(key, value) {
  if (value === null || value === undefined || value === "") return "–";
  if (key === "at" && typeof value === "number") return new Date(value * 1000).toLocaleTimeString();
  if (key.endsWith("_bytes") && typeof value === "number") return (value / 2 ** 30).toFixed(2);
  if (typeof value === "number" && !Number.isInteger(value)) return value.toFixed(3);
  if (Array.isArray(value)) return !value.length ? "–" : value.map((item) => shown("", item)).join(", ");
  if (typeof value === "object") {
    return Object.entries(value).map(([name, inner]) => `${label(name)}: ${shown(name, inner)}`).join(", ");
  }
  return String(value);
}

function cell(key, value) {
  if (Array.isArray(value) && value.length && value.every(isObject)) return element("td", table(value));
  const made = element("td", shown(key, value));
  if (typeof value === "number") made.className = "number";
  return made;
}

function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function table(rows) {
  const keys = [...new Set(rows.flatMap((row) => Object.keys(row)))].filter((key) => key !== "verdicts");
  const head = element("tr", ...keys.map((key) => element("th", label(key))));
  const body = rows.map((row) => element("tr", ...keys.map((key) => cell(key, row[key]))));
  return element("table", element("thead", head), element("tbody", ...body));
}

function facts(data) {
  const parts = [];
  const plain = {};
  for (const [key, value] of Object.entries(data)) {
    if (Array.isArray(value) && value.length && value.every(isObject)) {
      parts.push(element("h3", label(key)), table(value));
    } else if (isObject(value)) {
      parts.push(element("h3", label(key)), facts(value));
    } else {
      plain[key] = value;
    }
  }
  if (Object.keys(plain).length) parts.unshift(table([plain]));
  return element("div", ...parts);
}

function put(id, node) {
  document.getElementById(id).replaceChildren(node);
}

async function get(path) {
  const answer = await fetch(path);
  return [answer.ok, await answer.json()];
}

async function refresh() {
  const ready = document.getElementById("ready");
  try {
    const [[isReady], [, state], [, recent]] = await Promise.all(
      ["readyz", "router/state", "router/decisions"].map(get),
    );
    ready.textContent = isReady ? "ready" : "not ready";
    ready.className = isReady ? "good" : "bad";
    put("state", facts(state));
    put("decisions", recent.decisions.length ? table(recent.decisions) : element("p", "none yet"));
  } catch {
    ready.textContent = "cannot reach the router";
    ready.className = "bad";
  }
}

async function explain(event) {
  event.preventDefault();
  const query = new URLSearchParams(new FormData(event.target));
  const [, found] = await get(`router/explain?${query}`);
  put("explanation", facts(found));
}

document.getElementById("explain").addEventListener("submit", explain);
setInterval(() => document.hidden || refresh(), REFRESH_MS);
refresh();
