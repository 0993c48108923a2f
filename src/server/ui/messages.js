// What the page says beside what it shows.

import { byId, element } from './dom.js';

/// Shows a message under the form, perhaps with buttons.
export function say(text, kind = '', ...buttons) {
  byId('message').className = kind;
  byId('message').replaceChildren(...(text ? [element('p', {}, text)] : []), ...buttons);
}

let saidAt = 0,
  toSay = null;
/// Reads out for screen readers, at most every two seconds; what is urgent at once.
export function announce(text, isUrgent = true) {
  clearTimeout(toSay);
  const speak = () => {
    saidAt = Date.now();
    byId('live').textContent = text;
  };
  if (isUrgent) speak();
  else toSay = setTimeout(speak, Math.max(0, saidAt + 2000 - Date.now()));
}
