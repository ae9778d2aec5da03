// The cards, each as a bar to scale, and what can be done with the models on them.
import { el, show } from "./dom.js";
import { colour, count, now, scale, seconds, size, tokens } from "./format.js";

function block(part, total) {
  const share = `${(100 * part.bytes) / total}%`;
  const names = { others: part.model || "other programs", free: "free" };
  const name = names[part.kind] ?? part.model;
  const said = `${part.kind === "loading" ? "loading " : ""}${name}: ${size(part.bytes)}`;
  const kind = part.kind === "model" || part.kind === "loading" ? `${part.kind} ${colour(part.model)}` : part.kind;
  const isNarrow = part.bytes / total < 0.08;
  const text = isNarrow ? [] : [el("b", {}, name), el("span", {}, size(part.bytes))];
  return el("div", { class: `block ${kind}${isNarrow ? " narrow" : ""}`, style: { width: share }, title: said, "aria-label": said, role: "img" }, ...text);
}

/** The marks below a bar. The first and the last one stand within it. */
function ruler(total) {
  const marks = scale(total);
  const made = marks.map(([bytes, text], at) => {
    const kind = at === 0 ? "first" : at === marks.length - 1 ? "last" : "";
    return el("span", { class: kind, style: { left: `${((100 * bytes) / total).toFixed(2)}%` } }, text);
  });
  return el("div", { class: "ruler num", "aria-hidden": "true" }, ...made);
}

function card(gpu) {
  const used = gpu.total_bytes - (gpu.blocks.at(-1)?.bytes ?? 0);
  const number = /GPU \d+$/.test(gpu.name) ? null : el("span", { class: "dim" }, ` GPU ${gpu.index}`); // once is enough
  const title = el("span", {}, el("b", {}, gpu.name || "GPU"), number);
  const head = el("div", { class: "card-head" }, title, el("span", { class: "dim num" }, `${size(used)} of ${size(gpu.total_bytes)} in use`));
  return el("div", { class: "card" }, head, el("div", { class: "bar" }, ...gpu.blocks.filter((part) => part.bytes).map((part) => block(part, gpu.total_bytes))), ruler(gpu.total_bytes));
}

function facts(model) {
  const found = [size(model.bytes)];
  if (model.backend) found.push(`on ${model.backend}`);
  if (model.context) found.push(`${tokens(model.context)} tokens of context`);
  found.push(model.in_flight ? `${model.in_flight} in flight${model.slots ? ` of ${model.slots}` : ""}` : "idle");
  if (model.served !== null) found.push(`${count(model.served)} served`);
  if (model.on_cpu_bytes > 0) found.push(`${size(model.on_cpu_bytes)} on the CPU`);
  if (!model.ours) found.push("loaded by another client");
  if (model.kept) found.push("kept");
  else if (model.unloads_at) found.push(`unloads in ${seconds(Math.max(0, model.unloads_at - now()))}`);
  return found.join(" · ");
}

function button(text, action, model, pressed = undefined) {
  const facts = { type: "button", class: "act", "data-action": action, "data-model": model, "data-key": `${action} ${model}` };
  return el("button", { ...facts, "aria-label": `${text} ${model}`, ...(pressed === undefined ? {} : { "aria-pressed": String(pressed) }) }, text);
}

function row(model) {
  const acts = el("span", { class: "acts" }, button("Keep", model.kept ? "release" : "keep", model.name, model.kept), button("Unload", "unload", model.name));
  return el("li", {}, el("i", { class: `swatch ${colour(model.name)}` }), el("span", { class: "name" }, model.name), el("span", { class: "dim num small" }, facts(model)), acts);
}

/** "3.2 s of about 12 s". */
export function took(loading) {
  const since = Math.max(0, now() - loading.since);
  return `${seconds(since)}${loading.expected_s > since ? ` of about ${seconds(loading.expected_s)}` : ""}`;
}

function loadingRow(loading) {
  const evicts = loading.evicts.length ? `, in place of ${loading.evicts.join(", ")}` : "";
  const said = `loading for ${took(loading)}${evicts}`;
  return el("li", {}, el("i", { class: `swatch ${colour(loading.model)}` }), el("span", { class: "name" }, loading.model), el("span", { class: "dim small num" }, said));
}

export function showCards(board) {
  const cards = board.cards === null ? [el("p", { class: "empty" }, "Free VRAM cannot be read: each load is tried and then verified.")] : board.cards.map(card);
  if (board.cards?.length === 0) cards.push(el("p", { class: "empty" }, "No GPU."));
  const isKnown = board.loading && board.models.some((model) => model.name === board.loading.model);
  const rows = [...board.models.map(row), ...(board.loading && !isKnown ? [loadingRow(board.loading)] : [])];
  const legend = rows.length ? el("ul", { class: "legend" }, ...rows) : el("p", { class: "empty small" }, "Nothing is loaded.");
  show("cards", ...cards, legend);
}
