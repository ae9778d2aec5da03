// Builds the page. Names come from clients and models, so every value becomes a text node and never markup.

/** Return an element. `facts` are properties; `class`, `style` (an object) and `data-…`/`aria-…` are set as such. */
export function el(tag, facts = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(facts)) {
    if (value === undefined || value === null || value === false) continue;
    if (key === "class") made.className = value;
    else if (key === "style") Object.assign(made.style, value);
    else if (key.includes("-") || key === "role" || key === "colspan") made.setAttribute(key, value);
    else made[key] = value;
  }
  made.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

export const byId = (id) => document.getElementById(id);

/** Replace the children of an element only if they differ, so that focus, selection and open details stay. */
export function show(id, ...nodes) {
  const place = byId(id);
  const now = [...place.childNodes];
  if (now.length === nodes.length && now.every((node, at) => node.isEqualNode(nodes[at]))) return;
  const focused = place.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  place.replaceChildren(...nodes);
  if (focused) place.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
}

/** Show rows by key, of which each has its own: a row whose text has not changed is not touched. */
export function showRows(list, rows) {
  const old = new Map([...list.children].map((item) => [item.dataset.key, item]));
  let after = null;
  for (const { key, stamp, make } of rows) {
    let item = old.get(key);
    if (!item || item.dataset.stamp !== stamp) {
      const fresh = make();
      fresh.dataset.key = key;
      fresh.dataset.stamp = stamp;
      if (item?.querySelector("details[open]")) fresh.querySelector("details")?.setAttribute("open", "");
      item?.replaceWith(fresh);
      item = fresh;
    }
    old.delete(key);
    const place = after ? after.nextSibling : list.firstChild;
    if (place !== item) list.insertBefore(item, place);
    after = item;
  }
  for (const gone of old.values()) gone.remove();
}
