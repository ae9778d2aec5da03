// Figures for people.

const PALETTE = 8;
const colours = new Map();

/** "15.1 GiB", "640 MiB". */
export function size(bytes) {
  return bytes >= 2 ** 30 ? `${(bytes / 2 ** 30).toFixed(1)} GiB` : `${Math.round(bytes / 2 ** 20)} MiB`;
}

/** "8k", "40k", "1,000": a number of tokens. */
export function tokens(count) {
  return count % 1024 === 0 && count >= 1024 ? `${count / 1024}k` : count.toLocaleString("en");
}

/** "0.3 s", "12 s", "4 min", "2 h". */
export function seconds(value) {
  if (value < 10) return `${value.toFixed(1)} s`;
  if (value < 120) return `${Math.round(value)} s`;
  return value < 7200 ? `${Math.round(value / 60)} min` : `${Math.round(value / 3600)} h`;
}

/** 950 → "950", 12300 → "12.3k". */
export function count(value) {
  if (value < 10000) return value.toLocaleString("en");
  return value < 1e6 ? `${(value / 1000).toFixed(1)}k` : `${(value / 1e6).toFixed(1)}M`;
}

/** 1, "request" → "1 request"; 2, "switch", "switches" → "2 switches". */
export const several = (value, one, many = `${one}s`) => `${count(value)} ${value === 1 ? one : many}`;

export const clock = (at) => new Date(at * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });

/** "14:05". */
export const hour = (at) => new Date(at * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });

/** 0.256 → "26 %". */
export const percent = (part) => `${Math.round(100 * part)} %`;

/** Return the marks of a scale from 0 to `total` bytes, as [bytes, text]: about five, at whole GiB. */
export function scale(total) {
  const most = total / 2 ** 30;
  const step = [1, 2, 4, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128, 160, 192, 256].find((one) => most / one <= 5) ?? most / 4;
  const found = [];
  for (let at = 0; at < most - step / 2; at += step) found.push([at * 2 ** 30, String(at)]);
  return [...found, [total, `${Math.round(most * 10) / 10} GiB`]];
}

export const now = () => Date.now() / 1000;

/** Return the class of a model's colour: the same one wherever the model is shown. */
export function colour(model) {
  if (!colours.has(model)) colours.set(model, colours.size % PALETTE);
  return `m${colours.get(model)}`;
}
