// The teams: what each has had of the runners against its share, what is used of its limits, what waits.
import { byId, el, show } from "./dom.js";
import { count, percent, seconds, several } from "./format.js";

const LIMITS = [
  ["concurrent", "at a time"], ["requests_per_minute", "requests in a minute"], ["tokens_per_day", "tokens today"],
  ["waiting", "in the queue"], ["evictions_per_minute", "evictions in a minute"],
];
const NEAR = 0.9;

const isActive = (team) => team.waiting || team.in_flight || team.served_s || team.today.requests || Object.values(team.used).some(Boolean);

function tags(team) {
  const found = [];
  if (team.in_flight) found.push(el("span", { class: "tag good num" }, `${team.in_flight} in flight`));
  if (team.waiting) found.push(el("span", { class: "tag warn num" }, `${team.waiting} waiting`));
  if (team.lag_s > 0.05) found.push(el("span", { class: "tag num", title: "by so much it has had more than the team that is next" }, `${seconds(team.lag_s)} ahead`));
  return found;
}

function had(team, all) {
  if (!all.served_s) return null;
  const part = team.served_s / all.served_s;
  const due = team.share / all.share;
  const said = `${team.team} has had ${percent(part)} of the time that teams have used; its share is ${percent(due)}`;
  const meter = el("div", { class: "meter wide" }, el("i", { style: { width: `${100 * part}%` } }), el("u", { style: { left: `calc(${100 * due}% - 1px)` } }));
  const text = el("div", { class: "spread small num" }, el("span", {}, `${percent(part)} of the time, ${seconds(team.served_s)}`), el("span", { class: "dim" }, `due ${percent(due)}`));
  return el("div", { role: "img", "aria-label": said, title: said }, text, meter);
}

function limit(team, [name, text]) {
  const most = team.limits[name];
  if (most === undefined) return null;
  const used = team.used[name];
  if (used === undefined) return el("div", { class: "limit small num" }, el("span", { class: "dim" }, text), el("span", {}, `at most ${count(most)}`));
  const part = most ? used / most : 1;
  const meter = el("div", { class: part >= 1 ? "meter over" : part >= NEAR ? "meter near" : "meter" }, el("i", { style: { width: `${Math.min(100, 100 * part)}%` } }));
  return el("div", { class: "limit small num" }, el("span", { class: "dim" }, text), el("span", {}, `${count(used)} of ${count(most)}`), meter);
}

function today(team) {
  if (!team.today.requests) return null;
  const { requests, errors, tokens_in: read, tokens_out: written, card_ms: ms } = team.today;
  const found = [several(requests, "request")];
  if (errors) found.push(several(errors, "error"));
  found.push(several(read + written, "token"));
  if (ms) found.push(`${seconds(ms / 1000)} on runners`);
  return el("div", { class: "dim small num" }, `today: ${found.join(" · ")}`);
}

function row(team, all) {
  const share = el("span", { class: "when num", title: "its weight when teams compete" }, `share ${team.share}`);
  const head = el("div", { class: "head" }, el("span", { class: "name" }, team.team), ...tags(team), share);
  const limits = LIMITS.map((one) => limit(team, one)).filter(Boolean);
  return el("li", {}, head, had(team, all), limits.length ? el("div", { class: "limits" }, ...limits) : null, today(team));
}

export function showTeams(data) {
  const rows = data.teams ?? [];
  const active = rows.filter(isActive);
  byId("teams-panel").hidden = rows.length < 2;
  const all = { served_s: 0, share: 0 };
  for (const team of active) {
    all.served_s += team.served_s;
    all.share += team.share;
  }
  const idle = rows.filter((team) => !isActive(team)).map((team) => team.team);
  const rest = idle.length ? el("p", { class: "dim small idle" }, `${active.length ? "nothing today" : "no request today"}: ${idle.join(", ")}`) : null;
  show("teams", ...[active.length ? el("ul", { class: "rows" }, ...active.map((team) => row(team, all))) : null, rest].filter(Boolean));
}
