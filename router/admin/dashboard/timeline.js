// What was loaded over the last hour, or since the router runs, with requests, avoided spills and switches.
import { byId, el, show } from "./dom.js";
import { clock, colour, hour, now, seconds, several } from "./format.js";

const LEAST_S = 60;
const SHORT_S = 600;
const MINUTE_S = 60;
const TICKS = 4;
const WIDEST_PX = 32; // of a minute's bar, while there are few

/** Return the period that is shown: [begin, end]. */
function period({ since, kept_s: kept }) {
  const end = Math.ceil(now() / 10) * 10; // moves in steps, so that the page is not redrawn every second
  return [Math.max(end - kept, Math.min(since, end - LEAST_S)), end];
}

const place = (at, [begin, end]) => Math.min(100, Math.max(0, (100 * (at - begin)) / (end - begin)));

function lanes(board, shown) {
  const spans = board.timeline.spans.filter((span) => (span.to ?? shown[1]) > shown[0]);
  const keys = [...new Map(spans.map((span) => [`${span.card} ${span.model}`, span])).values()];
  keys.sort((a, b) => a.card - b.card || a.model.localeCompare(b.model));
  return keys.map((lane) => {
    const mine = spans.filter((span) => span.card === lane.card && span.model === lane.model);
    const bars = mine.map((span) => {
      const left = place(span.from, shown);
      const width = place(span.to ?? shown[1], shown) - left;
      const said = `${clock(span.from)} – ${span.to ? clock(span.to) : "now"}`;
      return el("i", { class: `span ${colour(span.model)}`, style: { left: `${left.toFixed(2)}%`, width: `${width.toFixed(2)}%` }, title: said });
    });
    const where = (board.cards ?? []).length > 1 ? el("span", { class: "dim" }, `GPU ${lane.card}`) : null;
    const label = el("div", { class: "label" }, el("span", {}, lane.model), where);
    return el("div", { class: "lane" }, label, el("div", { class: "rail" }, ...bars));
  });
}

function minutes(board, shown) {
  const kept = board.minutes.filter((minute) => minute.requests && minute.at + MINUTE_S > shown[0]);
  if (!kept.length) return null;
  const most = Math.max(...kept.map((minute) => minute.requests));
  const bars = kept.map((minute) => {
    const height = (n) => ({ height: `${((46 * n) / most).toFixed(1)}px` });
    const avoided = minute.spills_avoided;
    const [left, right] = [place(Math.max(minute.at, board.timeline.since), shown), place(minute.at + MINUTE_S, shown)];
    const width = `min(${WIDEST_PX}px, ${Math.max(0.6, right - left).toFixed(2)}% - 1px)`;
    const said = `${hour(minute.at)}: ${several(minute.requests, "request")}, ${several(minute.spills_avoided, "spill")} avoided`;
    const parts = [el("i", { class: "other", style: height(minute.requests - avoided) }), el("i", { class: "avoided", style: height(avoided) })];
    return el("span", { class: "minute", style: { left: `${((left + right) / 2).toFixed(2)}%`, width }, title: said }, ...parts);
  });
  const top = el("span", { class: "most num" }, `${several(most, "request")} a minute`);
  return el("div", { class: "minutes" }, top, ...bars);
}

function marks(board, shown) {
  return board.timeline.marks.filter((mark) => mark.at > shown[0]).map((mark) => {
    const took = mark.took_s ? ` in ${seconds(mark.took_s)}` : "";
    const said = `${clock(mark.at)}: ${mark.kind} ${mark.model}${took}${mark.error ? `: ${mark.error}` : ""}`;
    const kind = mark.kind === "spill" ? "spill" : mark.kind.split(" ")[1];
    return el("i", { class: `mark ${kind}`, style: { left: `${place(mark.at, shown).toFixed(2)}%` }, title: said });
  });
}

function axis([begin, end]) {
  const said = end - begin < SHORT_S ? clock : hour;
  const ticks = Array.from({ length: TICKS }, (_, at) => said(begin + ((end - begin) * at) / TICKS));
  return el("div", { class: "axis num" }, ...[...ticks, "now"].map((text) => el("span", {}, text)));
}

export function showTimeline(board) {
  const shown = period(board.timeline);
  const isWhole = board.timeline.since <= shown[1] - board.timeline.kept_s;
  byId("h-hour").textContent = isWhole ? "Last hour" : `Since ${hour(board.timeline.since)}`;
  const entry = (kind, text) => el("span", {}, el("i", { class: kind }), text);
  const key = el("div", { class: "key" }, entry("avoided", "requests whose spill was avoided"), entry("other", "other requests"), entry("switch", "switch"));
  const content = lanes(board, shown);
  const noted = marks(board, shown);
  const asked = minutes(board, shown);
  if (!content.length && !noted.length && !asked) return show("timeline", el("p", { class: "empty" }, "Nothing has happened yet."));
  show("timeline", ...[key, asked, el("div", { class: "marks" }, ...noted), ...content, axis(shown)].filter(Boolean));
}
