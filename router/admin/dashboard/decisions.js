// Decisions as sentences; each opens to the verdicts on all variants.
import { byId, el, showRows } from "./dom.js";
import { clock, seconds, several, size, tokens } from "./format.js";

const GOOD = new Set(["resident", "fits", "is being loaded", "fits once busy residents are idle", "placed as it was asked", "loading", "placed", "waits", "tries"]);

function why(row) {
  const first = row.verdicts?.[0];
  if (row.outcome === "exact") return row.reason === "resident" ? "it was loaded" : row.reason === "fits" ? "loaded for it" : row.reason;
  if (first && first.need_bytes > first.have_bytes) return `${first.model} needs ${size(first.need_bytes)}, ${size(first.have_bytes)} there`;
  return row.reason;
}

function end(row) {
  const found = [];
  if (row.queue_s > 0.05) found.push(`waited ${seconds(row.queue_s)}`);
  if (row.tokens_out) found.push(several(row.tokens_out, "token"));
  if (row.duration_s) found.push(`took ${seconds(row.duration_s)}`);
  if (row.ended && row.ended !== "completed") found.push(row.ended.replaceAll("_", " "));
  if (row.team && row.team !== "anonymous" && row.team !== "default") found.push(row.team);
  return found.join(" · ");
}

function requestHead(row) {
  const name = (text) => el("span", { class: "name" }, text);
  if (!row.chosen) return [name(row.requested), el("span", { class: "tag bad" }, "refused")];
  if (row.chosen === row.requested) return [name(row.requested), el("span", { class: "tag good" }, "as asked")];
  const kind = row.outcome === "fallback" ? "substituted" : row.outcome;
  return [name(row.requested), el("span", { class: "arrow" }, "→"), name(row.chosen), el("span", { class: `tag ${row.outcome === "exact" ? "good" : "warn"}` }, row.outcome === "exact" ? "as asked" : kind)];
}

function switchHead(row) {
  const name = el("span", { class: "name" }, row.model);
  if (row.kind === "spill") return [name, el("span", { class: "tag bad" }, "spilled"), "and was unloaded again"];
  if (row.kind === "switch failed") return [name, el("span", { class: "tag bad" }, "not loaded"), row.error];
  const evicted = row.evicted?.length ? ` in place of ${row.evicted.join(", ")}` : "";
  return [el("span", { class: "dim" }, "Loaded"), name, el("span", { class: "dim" }, `${row.duration_s ? `in ${seconds(row.duration_s)}` : ""}${evicted}`)];
}

/** Return the table of verdicts, of a decision or of an explanation. */
export function verdicts(rows, chosen) {
  const most = Math.max(1, ...rows.map((row) => Math.max(row.need_bytes, row.have_bytes)));
  const cell = (row) => {
    if (!row.need_bytes) return el("td", { class: "num dim" }, "–");
    const width = { width: `${((100 * row.need_bytes) / most).toFixed(1)}%` };
    const there = { left: `min(${((100 * row.have_bytes) / most).toFixed(1)}%, calc(100% - 2px))` };
    const over = row.need_bytes > row.have_bytes ? "meter over" : "meter";
    return el("td", { class: "num" }, `${size(row.need_bytes)} of ${size(row.have_bytes)}`, el("div", { class: over }, el("i", { style: width }), el("u", { style: there })));
  };
  const line = (row) => {
    const said = row.verdict.replaceAll("_", " ");
    const more = row.detail && row.detail !== said ? `, ${row.detail}` : "";
    const context = row.num_ctx ? el("div", { class: "dim small" }, `${tokens(row.num_ctx)} context`) : null;
    const kind = GOOD.has(said) || GOOD.has(row.verdict) ? "good" : "bad";
    return el("tr", { class: row.model === chosen ? "chosen" : "" }, el("td", {}, row.model, context), el("td", {}, el("span", { class: `tag ${kind}` }, said), more), cell(row));
  };
  const head = el("tr", {}, el("th", {}, "Variant"), el("th", {}, "Verdict"), el("th", { class: "num" }, "Needs, of what is there"));
  const isMeasured = rows.some((row) => row.need_bytes);
  const ends = el("div", { class: "spread" }, el("span", {}, "0"), el("span", {}, size(most)));
  const foot = isMeasured ? el("tfoot", { "aria-hidden": "true" }, el("tr", {}, el("td", { colspan: 2 }), el("td", { class: "small dim" }, ends))) : null;
  return el("table", { class: "verdicts" }, el("thead", {}, head), el("tbody", {}, ...rows.map(line)), foot);
}

function item(row, times) {
  const isRequest = row.kind === "request";
  const many = times > 1 ? el("span", { class: "dim" }, `× ${times}`) : null;
  const head = el("div", { class: "head" }, ...(isRequest ? requestHead(row) : switchHead(row)), many, el("span", { class: "when num" }, clock(row.at)));
  const sentence = isRequest ? el("div", { class: "dim small" }, [why(row), end(row)].filter(Boolean).join(" · ")) : null;
  if (!row.verdicts?.length) return el("li", {}, head, sentence);
  return el("li", {}, el("details", {}, el("summary", {}, head, sentence), verdicts(row.verdicts, row.chosen)));
}

/** Return runs of equal decisions as one row each, newest first. */
function grouped(rows) {
  const found = [];
  for (const row of rows) {
    const key = row.kind === "request" ? [row.requested, row.chosen, row.outcome, row.team, row.ended === "completed" || !row.ended].join("|") : "";
    const last = found.at(-1);
    if (key && last?.key === key) last.times += 1;
    else found.push({ key, row, times: 1 });
  }
  return found;
}

export function showDecisions(rows) {
  const place = byId("decisions");
  if (!rows.length) return place.replaceChildren(el("p", { class: "empty" }, "No request yet. Point a client at this router, or try it here."));
  const list = place.querySelector("ul") ?? place.replaceChildren(el("ul", { class: "rows" })) ?? place.querySelector("ul");
  const shown = grouped(rows).slice(0, 30).map(({ row, times }) => ({
    key: (row.kind === "request" && row.request_id) || `${row.kind} ${row.model} ${row.at}`, // a switch has its request's id
    stamp: `${times} ${row.ended} ${row.at}`,
    make: () => item(row, times),
  }));
  showRows(list, shown);
}
