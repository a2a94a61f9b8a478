// Small helpers that every part of the page uses.

/** The element with an id. */
export const $ = (id) => document.getElementById(id);

/** An element with attributes (functions are listeners, as in `onclick`) and children. */
export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

/** One of the icons that index.html defines. */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

/** A short message in a corner of the page, read out by screen readers; mistakes stay longer. */
export function say(text, mistake = false) {
  const note = el("p", { class: mistake ? "note bad" : "note" }, text);
  const old = [...$("notes").children].find((other) => other.textContent === text);
  old?.remove(); // the same mistake a hundred times is one message
  $("notes").append(note);
  while ($("notes").children.length > 4) $("notes").firstChild.remove();
  setTimeout(() => note.remove(), mistake ? 9000 : 4500);
}

/** LEFT_SHOULDER_PITCH -> left shoulder pitch. */
export const plain = (name) => name.replaceAll("_", " ").toLowerCase();

/** The middle of some numbers, or another quantile; null of none. */
export function quantile(values, share = 0.5) {
  if (!values.length) return null;
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))];
}

/** Offer bytes as a file. */
export function download(blob, name) {
  const url = URL.createObjectURL(blob);
  const link = el("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}
