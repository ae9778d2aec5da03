// What was loaded over the last hour, with requests, avoided spills and switches.
import { el, show } from "./dom.js";
import { clock, colour, now, seconds } from "./format.js";

const place = (at, end, kept) => Math.max(0, 100 - (100 * (end - at)) / kept);

function lanes(board, end) {
  const { spans, kept_s: kept } = board.timeline;
  const cards = board.cards ?? [];
  const keys = [...new Map(spans.map((span) => [`${span.card} ${span.model}`, span])).values()];
  keys.sort((a, b) => a.card - b.card || a.model.localeCompare(b.model));
  return keys.map((lane) => {
    const mine = spans.filter((span) => span.card === lane.card && span.model === lane.model);
    const bars = mine.map((span) => {
      const left = place(span.from, end, kept);
      const width = place(span.to ?? end, end, kept) - left;
      const said = `${clock(span.from)} – ${span.to ? clock(span.to) : "now"}`;
      return el("i", { class: `span ${colour(span.model)}`, style: { left: `${left.toFixed(2)}%`, width: `${width.toFixed(2)}%` }, title: said });
    });
    const where = cards.length > 1 ? el("span", { class: "dim" }, `GPU ${lane.card}`) : null;
    const label = el("div", { class: "label" }, el("span", {}, lane.model), where);
    return el("div", { class: "lane" }, label, el("div", { class: "rail" }, ...bars));
  });
}

function minutes(board, end) {
  const most = Math.max(1, ...board.minutes.map((minute) => minute.requests));
  return board.minutes.map((minute) => {
    const height = (n) => ({ height: `${((46 * n) / most).toFixed(1)}px` });
    const avoided = Math.min(minute.requests, minute.spills_avoided);
    const said = `${clock(minute.at)}: ${minute.requests} requests, ${minute.spills_avoided} spills avoided`;
    const bars = [el("i", { class: "other", style: height(minute.requests - avoided) }), el("i", { class: "avoided", style: height(avoided) })];
    return el("span", { class: "minute", style: { left: `${place(minute.at, end, board.timeline.kept_s).toFixed(2)}%` }, title: said }, ...bars);
  });
}

function marks(board, end) {
  return board.timeline.marks.map((mark) => {
    const took = mark.took_s ? ` in ${seconds(mark.took_s)}` : "";
    const said = `${clock(mark.at)}: ${mark.kind} ${mark.model}${took}${mark.error ? `: ${mark.error}` : ""}`;
    const kind = mark.kind === "spill" ? "spill" : mark.kind.split(" ")[1];
    return el("i", { class: `mark ${kind}`, style: { left: `${place(mark.at, end, board.timeline.kept_s).toFixed(2)}%` }, title: said });
  });
}

export function showTimeline(board) {
  const end = Math.ceil(now() / 10) * 10; // moves in steps, so that the page is not redrawn every second
  const entry = (kind, text) => el("span", {}, el("i", { class: kind }), text);
  const key = el("div", { class: "key" }, entry("avoided", "requests whose spill was avoided"), entry("other", "other requests"), entry("switch", "switch"));
  const axis = el("div", { class: "axis" }, ...["60 min ago", "45", "30", "15", "now"].map((text) => el("span", {}, text)));
  const content = lanes(board, end);
  if (!content.length && !board.minutes.length) return show("timeline", el("p", { class: "empty" }, "Nothing has happened yet."));
  show("timeline", key, el("div", { class: "minutes" }, ...minutes(board, end)), el("div", { class: "marks" }, ...marks(board, end)), ...content, axis);
}
