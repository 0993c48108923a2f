// Faults at the fields that they are about.

import { byId } from './dom.js';

/// The field at which an error about something else is shown.
const ALIASES = {
  image: 'source',
  video: 'source',
  keep: 'source',
  mask: 'source',
  hint: 'control',
  ip_adapter: 'control',
  scale: 'control',
  preprocess: 'control',
  controls: 'control',
  ip_adapters: 'control',
  loras: 'lora',
  size: 'width',
  cfg: 'cfg_scale',
  guidance_scale: 'cfg_scale',
  text: 'prompt',
};

/// Shows a fault at its field and focuses it; false if the form has no such field.
export function showFault(param, message) {
  const name = (param ?? '')
    .split(/[.[]/)
    .filter(Boolean)
    .map(part => part.replaceAll('-', '_'));
  const id = name
    .reverse()
    .map(part => ALIASES[part] ?? part)
    .find(part => byId(`${part}-error`));
  if (!id) return false;
  const slot = byId(`${id}-error`);
  slot.textContent = message;
  for (let around = slot.parentElement; around; around = around.parentElement) {
    if (around.localName === 'details') around.open = true;
    if (around.hidden) around.hidden = false;
  }
  const input = byId(id) ?? slot.parentElement.querySelector('select, input, button');
  input?.setAttribute('aria-invalid', 'true');
  input?.focus();
  return true;
}

/// Takes all faults away.
export function clearFaults() {
  for (const slot of byId('form').querySelectorAll('.fault')) slot.textContent = '';
  for (const input of byId('form').querySelectorAll('[aria-invalid]')) input.removeAttribute('aria-invalid');
}
