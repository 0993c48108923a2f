// Elements of the page.

export const byId = id => document.getElementById(id);

/// Whether the reader asks for less motion.
export const isStill = matchMedia('(prefers-reduced-motion: reduce)');

/// An element with these properties; text is only ever set as text.
export function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (key in made && !key.startsWith('aria')) made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children.filter(child => child !== null && child !== undefined && child !== ''));
  return made;
}

/// One of the icons in index.html.
export function icon(name) {
  const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
  const use = document.createElementNS('http://www.w3.org/2000/svg', 'use');
  svg.setAttribute('class', 'icon');
  svg.setAttribute('aria-hidden', 'true');
  use.setAttribute('href', `#icon-${name}`);
  svg.append(use);
  return svg;
}

/// A button that does something.
export function button(text, onClick, properties = {}) {
  const made = element('button', { type: 'button', className: 'quiet', ...properties }, text);
  made.addEventListener('click', onClick);
  return made;
}
