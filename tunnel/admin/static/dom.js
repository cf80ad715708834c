// The only way text reaches the page: as text. Nothing here, or anywhere else, parses markup.

export const $ = (id) => document.getElementById(id);

// h("button", {class: "quiet", onclick: f, "aria-label": "…"}, child, …): a child is a node or a text.
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

// Setting what is there already would cost a repaint and, in a live region, a second reading aloud.
export function setText(element, text) {
  const shown = String(text);
  if (element.textContent !== shown) element.textContent = shown;
}

export function setAttribute(element, name, value) {
  if (value === null || value === undefined || value === false) element.removeAttribute(name);
  else if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
}

export function setHidden(element, isHidden) {
  if (element.hidden !== isHidden) element.hidden = isHidden;
}

const SHAPES = {
  healthy: "M8 1a7 7 0 1 1 0 14A7 7 0 0 1 8 1Zm3.2 4.3L7 9.5 4.9 7.4 3.8 8.5 7 11.7l5.3-5.3Z",
  unhealthy: "M8 1.2 15.4 14.4H.6ZM7.2 5.6v4.6h1.6V5.6Zm0 5.8V13h1.6v-1.6Z",
  bind_failed: "M5 1h6l4 4v6l-4 4H5l-4-4V5Zm.8 3.7L4.7 5.8 6.9 8l-2.2 2.2 1.1 1.1L8 9.1l2.2 2.2 1.1-1.1L9.1 8l2.2-2.2-1.1-1.1L8 6.9Z",
  none: "M8 1a7 7 0 1 1 0 14A7 7 0 0 1 8 1Zm0 1.6a5.4 5.4 0 1 0 0 10.8A5.4 5.4 0 0 0 8 2.600Z",
  close: "M4 2.600 8 6.600l4-4L13.400 4l-4 4 4 4-1.400 1.400-4-4-4 4L2.600 12l4-4-4-4Z",
  theme: "M8 1a7 7 0 1 1 0 14A7 7 0 0 1 8 1Zm0 1.600v10.800A5.400 5.400 0 0 0 8 2.600Z",
  lock: "M4.500 7V5a3.500 3.500 0 0 1 7 0v2H13v7.500H3V7Zm1.600 0h3.800V5a1.900 1.900 0 0 0-3.800 0Z",
};

// A shape of its own for each state, so that colour is never the only sign.
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 16 16");
  svg.setAttribute("aria-hidden", "true");
  svg.setAttribute("class", `icon icon-${name in SHAPES ? name : "none"}`);
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", SHAPES[name] ?? SHAPES.none);
  path.setAttribute("fill-rule", "evenodd");
  svg.append(path);
  return svg;
}
