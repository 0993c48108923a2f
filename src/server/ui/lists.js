// Parts of the form that are lists: LoRAs, the source, pictures to follow, and what is kept of an imported request.

import { byId, element, icon } from './dom.js';
import { showFault } from './faults.js';

/// What the inputs of the form do not hold. `kept` is the rest of an imported request.
export const chosen = { kept: {}, loras: [], source: null, guides: [] };
/// What the server has.
export const catalog = {
  models: [],
  motions: [],
  loras: [],
  guides: [],
  samplers: [],
  spacings: [],
  formats: [],
  preprocessors: [],
};

/// Fields of a request whose default is neither null, false, empty nor 0.
const DEFAULTS = {
  mode: 'a1111',
  motion_norm: 'per-frame',
  rng: 'cpu',
  dtype: 'auto',
  device: 'auto',
  noise: 'independent',
  interpolation: 'linear',
};

let upload, changed;

/// Gives the lists how a file is sent, and what happens after a change.
export function startLists(uploader, onChange) {
  upload = uploader;
  changed = onChange;
  byId('lora-add').addEventListener('click', () => {
    chosen.loras.push({ file: catalog.loras[0].id, scale: 1 });
    showLists();
    byId('lora-list').lastElementChild.querySelector('select').focus();
    changed();
  });
  byId('source').addEventListener('change', event => takeFile(event.target, setSource));
  byId('guide-add').addEventListener('change', event => takeFile(event.target, addGuide));
}

/// Selects a value; false if it had to be added because the server has no such thing.
export function choose(select, value) {
  const known = [...select.options].some(option => option.value === value);
  if (!known) select.append(element('option', { value }, catalog.models.length ? `${value} (not here)` : value));
  select.value = value;
  return known;
}

/// Shows all lists anew.
export function showLists() {
  byId('lora-list').replaceChildren(...chosen.loras.map(loraRow));
  byId('lora-add').disabled = !catalog.loras.length;
  byId('loras').hidden = !catalog.loras.length && !chosen.loras.length;
  byId('source-chosen').replaceChildren(...(chosen.source ? [sourceRow()] : []));
  byId('guide-list').replaceChildren(...chosen.guides.map(guideRow));
  byId('guides').hidden = !catalog.guides.length && !chosen.guides.length;
  showKept();
}

function labelled(text, input) {
  return element('label', { className: 'small' }, element('span', {}, text), input);
}

function picker(entry, key, list, label, onChange) {
  const select = element('select', { 'aria-label': label });
  select.append(...list.map(({ id, title }) => element('option', { value: id }, title ?? id)));
  choose(select, entry[key]);
  select.addEventListener('change', () => {
    entry[key] = select.value;
    onChange?.();
    changed();
  });
  return select;
}

function numberInput(entry, key, properties) {
  const isCurve = typeof entry[key] === 'string' && !Number.isFinite(Number(entry[key]));
  const input = element('input', { type: isCurve ? 'text' : 'number', step: 'any', value: entry[key], ...properties });
  input.addEventListener('input', () => {
    if (isCurve) entry[key] = input.value;
    else if (input.value !== '' && Number.isFinite(Number(input.value))) entry[key] = Number(input.value);
  });
  return input;
}

function remover(list, entry, name, back) {
  const button = element(
    'button',
    { type: 'button', className: 'square', 'aria-label': `Remove ${name}`, title: 'Remove' },
    icon('close'),
  );
  button.addEventListener('click', () => {
    if (list) list.splice(list.indexOf(entry), 1);
    else {
      chosen.source = null;
      byId('strength').value = '';
    }
    showLists();
    changed();
    byId(back).focus();
  });
  return button;
}

function loraRow(lora) {
  return element(
    'div',
    { className: 'entry' },
    picker(lora, 'file', catalog.loras, 'LoRA'),
    labelled('Strength', numberInput(lora, 'scale', {})),
    remover(chosen.loras, lora, 'this LoRA', 'lora-add'),
  );
}

function thumbnail({ preview, hint }) {
  if (!preview) return element('span', { className: 'thumb', title: hint }, 'picture');
  if (preview.isVideo) return element('video', { className: 'thumb', src: preview.url, muted: true });
  return element('img', { className: 'thumb', src: preview.url, alt: '' });
}

const shortName = ({ name, hint }) => name ?? hint?.replace(/^upload:(.{8}).*/, 'upload $1…') ?? '';

function sourceRow() {
  const kinds = [
    { id: 'image', title: 'image' },
    { id: 'video', title: 'video' },
  ];
  return element(
    'div',
    { className: 'entry' },
    thumbnail(chosen.source),
    element('span', { className: 'name' }, shortName(chosen.source)),
    labelled('Used as', picker(chosen.source, 'kind', kinds, 'Used as')),
    remover(null, chosen.source, 'the source', 'source'),
  );
}

function guideRow(guide) {
  const share = { min: 0, max: 1 };
  const isControl = !guide.rest?.images && catalog.guides.find(({ id }) => id === guide.model)?.kind !== 'ip-adapter';
  let prepare = null;
  if (isControl && catalog.preprocessors.length) {
    guide.rest ??= {};
    const kinds = [{ id: '', title: 'nothing' }, ...catalog.preprocessors.map(id => ({ id, title: id }))];
    const chosen = { kind: guide.rest.preprocess?.kind ?? '' };
    prepare = labelled(
      'Drawn by',
      picker(chosen, 'kind', kinds, 'What makes the hint of the picture', () => {
        if (chosen.kind) guide.rest.preprocess = { kind: chosen.kind };
        else delete guide.rest.preprocess;
      }),
    );
  }
  return element(
    'div',
    { className: 'entry guide' },
    thumbnail(guide),
    element('span', { className: 'name' }, shortName(guide)),
    remover(chosen.guides, guide, shortName(guide), 'guide-add'),
    labelled('Followed by', picker(guide, 'model', catalog.guides, 'Model that follows the picture', showLists)),
    labelled('Strength', numberInput(guide, 'scale')),
    labelled('From', numberInput(guide, 'start', share)),
    labelled('To', numberInput(guide, 'end', share)),
    prepare,
  );
}

/// Names of the settings in `kept` that are not defaults, by section.
function keptSettings() {
  const found = [];
  const isDefault = (name, value) =>
    name === 'lcm_lora' ||
    value === null ||
    value === false ||
    value === 0 ||
    value === '' ||
    value === DEFAULTS[name] ||
    (typeof value === 'object' && !Object.keys(value).length);
  for (const [section, values] of Object.entries(chosen.kept)) {
    if (typeof values !== 'object' || values === null) continue;
    const names = Object.entries(values)
      .filter(([name, value]) => !isDefault(name, value))
      .map(([name]) => name.replaceAll('_', ' '));
    if (names.length) found.push([section, names]);
  }
  return found;
}

/// Shows which settings are kept.
export function showKept() {
  const found = keptSettings();
  byId('kept').hidden = !found.length;
  byId('kept')
    .querySelector('ul')
    .replaceChildren(
      ...found.map(([section, names]) => {
        const drop = element(
          'button',
          { type: 'button', className: 'square', 'aria-label': `Leave out ${section}`, title: 'Leave out' },
          icon('close'),
        );
        drop.addEventListener('click', () => {
          delete chosen.kept[section];
          showKept();
          changed();
          byId('make').focus();
        });
        return element('li', {}, element('span', {}, `${section}: ${names.join(', ')}`), drop);
      }),
    );
}

// Files

async function takeFile(input, use) {
  const [file] = input.files;
  input.value = '';
  if (file) await use(file);
}

/// Looks at a picture or video and uploads it; null after saying why not.
async function received(file, slot) {
  const url = URL.createObjectURL(file);
  const isVideo = file.type.startsWith('video/');
  const shown = document.createElement(isVideo ? 'video' : 'img');
  const isFine = await new Promise(resolve => {
    shown[isVideo ? 'onloadedmetadata' : 'onload'] = () => resolve(true);
    shown.onerror = () => resolve(false);
    shown.src = url;
  });
  if (!isFine) {
    URL.revokeObjectURL(url);
    showFault(slot, `${file.name} is not a picture that can be read.`);
    return null;
  }
  try {
    const { id } = await upload(file);
    return { hint: id, name: file.name, preview: { url, isVideo } };
  } catch (error) {
    showFault(slot, `${file.name}: ${error.message}`);
    return null;
  }
}

/// Makes a file the source.
export async function setSource(file) {
  byId('source-error').textContent = '';
  const got = await received(file, 'source');
  if (!got) return;
  chosen.source = { ...got, rest: {}, kind: got.preview.isVideo || file.type === 'image/gif' ? 'video' : 'image' };
  byId('more').open = true;
  showLists();
  changed();
}

/// Adds a picture to follow.
export async function addGuide(file) {
  byId('control-error').textContent = '';
  if (!catalog.guides.length) return showFault('control', 'This server has no model that follows pictures.');
  const got = await received(file, 'control');
  if (!got) return;
  chosen.guides.push({ ...got, model: catalog.guides[0].id, scale: 1, start: 0, end: 1 });
  byId('more').open = true;
  showLists();
  changed();
}
