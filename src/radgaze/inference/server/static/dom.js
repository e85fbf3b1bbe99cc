// Elements and words. Whatever comes from data goes in as text, never as markup.

/** An element with attributes and children; strings become text, null and false are left out. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== false));
  return element;
}

export function byId(id) {
  return document.getElementById(id);
}

/** Fills a select with [value, text] pairs and chooses one. */
export function fill(select, options, chosen) {
  select.replaceChildren(
    ...options.map(([value, text]) => {
      const option = make("option", { value }, text);
      option.selected = value === chosen;
      return option;
    }),
  );
}

const NARROW = "\u202f"; // between a number and its unit

export function percent(share) {
  if (share > 0 && share < 0.005) return `<1${NARROW}%`;
  if (share < 1 && share > 0.995) return `>99${NARROW}%`;
  return `${Math.round(100 * share)}${NARROW}%`;
}

/** About three figures, without an exponent where it can be avoided. */
export function figures(value, digits = 3) {
  if (value === null || !Number.isFinite(value)) return "–";
  if (value !== 0 && Math.abs(value) < 1e-3) return value.toExponential(1).replace("-", "−");
  const decimals = value === 0 ? 0 : Math.max(0, digits - 1 - Math.floor(Math.log10(Math.abs(value))));
  return value.toFixed(Math.min(decimals, digits)).replace("-", "−");
}

export function seconds(value) {
  return `${value.toFixed(1)}${NARROW}s`;
}

/** The name of a map as people say it. */
export function called(map) {
  if (map === "none") return "None";
  if (map === "attention") return "Predicted attention";
  if (map === "human") return "Reader’s attention";
  return `Evidence for ${map.slice("cam:".length)}`;
}

export function labels(label) {
  const given = Array.isArray(label) ? label : label === null || label === undefined ? [] : [label];
  return given.map(String);
}
