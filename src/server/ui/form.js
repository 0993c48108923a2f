// The form, and the request (`animatelcm/v1`) that it stands for.

import { byId, element, icon } from './dom.js';
import { clearFaults, showFault } from './faults.js';
import { catalog, choose, chosen, showKept, showLists, startLists } from './lists.js';
import { weigh } from './weigh.js';

const SCHEMA = 'animatelcm/v1';
const STORED = 'animatelcm.form';

/// Words that the model inside the program knows.
const WORDS = {
  colors: ['red', 'green', 'blue', 'yellow', 'white', 'purple', 'orange', 'cyan'],
  shapes: ['circle', 'square', 'triangle', 'star', 'ring'],
  motions: ['moving left', 'moving up', 'moving down', 'growing', 'shrinking', 'bouncing', 'standing still'],
  grounds: ['black', 'white', 'grey', 'navy', 'brown'],
};
const FIRST_PROMPT = 'a red circle moving down on a white background';

/// Inputs with one number each: where it stands in a request, its limits, and what an empty field means.
const NUMBERS = {
  width: { at: ['size', 'width'], whole: true, least: 8 },
  height: { at: ['size', 'height'], whole: true, least: 8 },
  frames: { at: ['size', 'frames'], whole: true, least: 1 },
  fps: { at: ['output', 'fps'], least: 0.1, most: 240, empty: 8 },
  steps: { at: ['sampling', 'steps'], whole: true, least: 1, empty: 4 },
  cfg_scale: { at: ['sampling', 'cfg_scale'], least: 0, most: 1000, empty: 1 },
  zoom: { at: ['output', 'zoom'], whole: true, least: 1, most: 64, empty: 1 },
};
const CHOICES = {
  sampler: { at: ['sampling', 'sampler'], empty: 'lcm' },
  spacing: { at: ['sampling', 'spacing'], empty: '' },
  loop: { at: ['output', 'loop'], empty: 'none' },
};
/// The prompt whose open bracket was pointed out: sending it once more means it.
let pointedOut = null;

const get = (job, [section, name]) => job?.[section]?.[name];
const put = (job, [section, name], value) => {
  (job[section] ??= {})[name] = value;
};

/// Makes the form work; `onSend` is called to send it.
export function start(uploader, onSend) {
  startLists(uploader, changed);
  for (const id of ['prompt', 'negative']) byId(id).addEventListener('keydown', weigh);
  byId('form').addEventListener('input', changed);
  byId('form').addEventListener('submit', event => {
    event.preventDefault();
    onSend();
  });
  byId('form').addEventListener('keydown', event => {
    if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      onSend();
    }
  });
  byId('another').addEventListener('click', () => {
    byId('prompt').value = idea();
    changed();
  });
  byId('dice').addEventListener('click', () => {
    byId('seed').value = crypto.getRandomValues(new Uint32Array(1))[0];
    changed();
  });
  byId('lock').addEventListener('click', () => {
    const { lastSeed } = byId('seed').dataset;
    byId('seed').value = byId('seed').value ? '' : (lastSeed ?? '');
    if (!byId('seed').value) byId('seed').focus();
    changed();
  });
  byId('reset').addEventListener('click', () => {
    reset();
    byId('prompt').focus();
  });
  byId('model').addEventListener('change', () => {
    // What another model's clip said about networks and schedule is not this one's.
    const { embeddings } = chosen.kept.models ?? {};
    chosen.kept.models = embeddings ? { embeddings } : {};
    delete chosen.kept.schedule;
    showKept();
  });
  if (!restore()) reset();
}

/// Takes what the server has; choices that are no longer there stay, marked.
export function setCatalog(given) {
  Object.assign(catalog, given);
  options(
    'model',
    catalog.models.map(({ id, value, title }) => [value ?? id, title ?? id]),
  );
  options(
    'sampler',
    catalog.samplers.map(({ name }) => [name, name]),
  );
  options('spacing', [['', 'the sampler’s'], ...catalog.spacings.map(name => [name, name])]);
  const byName = list => list.map(({ id, title }) => [id, title ?? id]);
  options('motion', [['', 'the model’s'], ['none', 'none: still images'], ...byName(catalog.motions)]);
  options('lcm_lora', [['', 'the model’s'], ['none', 'none'], ...byName(catalog.loras)]);
  const isNew = !byId('format').value;
  options(
    'format',
    catalog.formats.map(name => [name, name]),
  );
  if (isNew && catalog.formats.includes('mp4')) byId('format').value = 'mp4';
  showLists();
  changed();
}

function options(id, pairs) {
  const select = byId(id);
  const { value } = select;
  select.replaceChildren(...pairs.map(([value, text]) => element('option', { value }, text)));
  if (value) choose(select, value);
}

function idea() {
  const pick = list => list[Math.floor(Math.random() * list.length)];
  for (;;) {
    const [color, ground] = [pick(WORDS.colors), pick(WORDS.grounds)];
    const article = /^[aeiou]/.test(color) ? 'an' : 'a';
    if (color !== ground)
      return `${article} ${color} ${pick(WORDS.shapes)} ${pick(WORDS.motions)} on a ${ground} background`;
  }
}

/// Empties the form and writes the prompt to begin with.
function reset() {
  fill({ schema: SCHEMA, prompt: { text: FIRST_PROMPT } }, {});
  byId('format').value = catalog.formats.includes('mp4') ? 'mp4' : (catalog.formats[0] ?? '');
  changed();
}

/// Shows a request; returns the names of models that the server does not have.
export function fill(job, { format, seed = 'keep' } = {}) {
  const missing = [];
  const kept = (chosen.kept = structuredClone(job));
  for (const name of ['weights', 'program', 'tensors_in']) delete kept[name];
  // The server chooses these.
  for (const name of ['device', 'dtype', 'quantize', 'kernels']) delete kept.models?.[name];
  if (typeof kept.prompt === 'string') kept.prompt = { text: kept.prompt };
  byId('prompt').value = kept.prompt?.text ?? '';
  byId('negative').value = kept.prompt?.negative ?? '';
  byId('travel').value = Object.entries(kept.prompt?.travel ?? {})
    .map(([frame, text]) => `${frame}: ${text}`)
    .join('\n');
  for (const [id, { at, empty }] of Object.entries(NUMBERS)) byId(id).value = get(kept, at) ?? empty ?? '';
  for (const [id, { at, empty }] of Object.entries(CHOICES)) choose(byId(id), get(kept, at) ?? empty);
  byId('seed').value = seed === 'keep' ? (get(kept, ['sampling', 'seed']) ?? '') : '';
  const here = (list, name) => {
    const bare = text =>
      text
        .split(/[/\\]/)
        .pop()
        .replace(/\.(safetensors|ckpt|pt|pth|bin)$/, '');
    const found = list.find(({ id }) => id === name) ?? list.find(({ id }) => bare(id) === bare(name));
    if (!found) missing.push(name);
    return found?.id ?? name;
  };
  const named = kept.models?.model;
  const model = named ? here(catalog.models, named) : '';
  choose(byId('model'), catalog.models.find(({ id }) => id === model)?.value ?? model);
  for (const [id, list, name] of [
    ['motion', catalog.motions, kept.models?.motion],
    ['lcm_lora', catalog.loras, kept.models?.lcm_lora?.file],
  ]) {
    choose(byId(id), !name || name === 'none' ? (name ?? '') : here(list, name));
  }
  byId('lcm_scale').value = kept.models?.lcm_lora?.scale ?? '';
  chosen.loras = (kept.models?.loras ?? []).map(lora => ({ ...lora, file: here(catalog.loras, lora.file) }));
  chosen.source = kept.source
    ? { rest: kept.source, kind: kept.source.video ? 'video' : 'image', hint: kept.source.video ?? kept.source.image }
    : null;
  byId('strength').value = kept.source?.strength ?? '';
  chosen.guides = [
    ...(kept.controls ?? []).map(rest => ({ rest, hint: rest.hint, ...common(rest) })),
    ...(kept.ip_adapters ?? []).map(rest => ({ rest, hint: rest.images?.[0]?.file, ...common(rest) })),
  ];
  function common(rest) {
    return {
      model: here(catalog.guides, rest.model),
      scale: rest.scale ?? 1,
      start: rest.start ?? 0,
      end: rest.end ?? 1,
    };
  }
  if (format) choose(byId('format'), format);
  const used = ['sampler', 'spacing', 'cfg_scale', 'loop', 'zoom'].some(id => {
    const { at, empty } = NUMBERS[id] ?? CHOICES[id];
    return (get(kept, at) ?? empty) !== empty;
  });
  if (used || chosen.source || chosen.guides.length || byId('travel').value) byId('more').open = true;
  strip();
  showLists();
  clearFaults();
  changed();
  return missing;
}

/// Takes out of what is kept what inputs hold.
function strip() {
  const { kept } = chosen;
  for (const {
    at: [section, name],
  } of [...Object.values(NUMBERS), ...Object.values(CHOICES)])
    delete kept[section]?.[name];
  for (const name of ['text', 'negative', 'travel']) delete kept.prompt?.[name];
  for (const name of ['model', 'loras', 'motion']) delete kept.models?.[name];
  delete kept.sampling?.seed;
  for (const name of ['source', 'controls', 'ip_adapters', 'schema']) delete kept[name];
}

/// The request and format that the form stands for; null after showing what is wrong.
export function read() {
  clearFaults();
  const faults = [];
  const job = structuredClone({ schema: SCHEMA, ...chosen.kept });
  job.schema = SCHEMA;
  const text = byId('prompt').value;
  put(job, ['prompt', 'text'], text);
  put(job, ['prompt', 'negative'], byId('negative').value);
  if (job.prompt.mode !== 'plain') {
    for (const id of ['prompt', 'negative']) {
      const { value } = byId(id);
      if (!isOpen(value) || pointedOut === value) continue;
      pointedOut = value;
      faults.push([
        id,
        'A bracket is left open. Close it, or write \\( for the character itself. Sending again takes it as it is.',
      ]);
    }
  }
  const travel = readTravel(byId('travel').value);
  if (typeof travel === 'string') faults.push(['travel', travel]);
  else if (travel) job.prompt.travel = travel;
  if (!text.trim() && !travel) faults.push(['prompt', 'Write what the clip shows.']);
  for (const [id, rule] of Object.entries(NUMBERS)) {
    const { value, fault } = number(byId(id), rule);
    if (fault) faults.push([id, fault]);
    else if (value !== null) put(job, rule.at, value);
  }
  for (const [id, { at, empty }] of Object.entries(CHOICES)) {
    const { value } = byId(id);
    if (value !== '' && (value !== empty || id === 'sampler')) put(job, at, value);
  }
  const seed = byId('seed').value.trim();
  if (seed && !(/^\d{1,20}$/.test(seed) && BigInt(seed) < 2n ** 64n))
    faults.push(['seed', 'A whole number, or nothing for a new one.']);
  else if (seed) put(job, ['sampling', 'seed'], BigInt(seed).toString());
  job.models ??= {};
  if (byId('model').value) job.models.model = byId('model').value;
  if (chosen.loras.length) job.models.loras = chosen.loras;
  if (byId('motion').value) job.models.motion = byId('motion').value;
  const scale = number(byId('lcm_scale'), {});
  if (scale.fault) faults.push(['lcm_lora', scale.fault]);
  if (byId('lcm_lora').value)
    job.models.lcm_lora = { ...job.models.lcm_lora, file: byId('lcm_lora').value, scale: scale.value ?? 1 };
  else delete job.models.lcm_lora;
  const { source } = chosen;
  if (source) {
    const { value, fault } = number(byId('strength'), { least: 0, most: 1 });
    if (fault) faults.push(['strength', fault]);
    const { image, video, strength, ...rest } = source.rest;
    job.source = { ...rest, [source.kind]: source.hint, ...(value === null ? {} : { strength: value }) };
  }
  readGuides(job);
  faults.reverse().forEach(([id, message]) => showFault(id, message));
  const format = byId('format').value;
  return faults.length ? null : { job, format };
}

function readGuides(job) {
  for (const { rest, hint, model, scale, start, end } of chosen.guides) {
    const set = { model, scale, start, end };
    if (catalog.guides.find(({ id }) => id === model)?.kind === 'ip-adapter' || rest?.images) {
      (job.ip_adapters ??= []).push({ ...rest, images: rest?.images ?? [{ file: hint }], ...set });
    } else {
      const names = (job.controls ??= []).map(({ name }) => name);
      let name = rest?.name ?? 'guide';
      for (let n = 2; names.includes(name); n += 1) name = `guide ${n}`;
      job.controls.push({ ...rest, name, hint, ...set });
    }
  }
}

/// The number in an input, null if it is empty, or what is wrong with it.
function number(input, { whole, least, most }) {
  if (input.validity.badInput) return { fault: 'This is not a number.' };
  if (input.value === '') return { value: null };
  const value = Number(input.value);
  if (!Number.isFinite(value)) return { fault: 'This is not a number.' };
  if (whole && !Number.isInteger(value)) return { fault: 'A whole number, please.' };
  if (value < least) return { fault: `At least ${least}.` };
  if (most !== undefined && value > most) return { fault: `At most ${most}.` };
  return { value };
}

function readTravel(text) {
  const travel = {};
  for (const line of text.split('\n').filter(line => line.trim())) {
    const [, frame, prompt] = /^\s*(\d+)\s*:\s*(.*?)\s*$/.exec(line) ?? [];
    if (frame === undefined) return `“${line.trim()}” does not begin with a frame, such as 8: winter`;
    if (frame in travel) return `Frame ${frame} stands there twice.`;
    travel[Number(frame)] = prompt;
  }
  return Object.keys(travel).length ? travel : null;
}

/// Whether a round or square bracket is never closed.
function isOpen(text) {
  const open = [];
  for (const [mark] of text.matchAll(/\\.|[()[\]]/gs)) {
    if (mark === '(' || mark === '[') open.push(mark);
    else if ((mark === ')' && open.at(-1) === '(') || (mark === ']' && open.at(-1) === '[')) open.pop();
  }
  return open.length > 0;
}

/// Tells the form which seed a clip got: the lock takes it.
export function setLastSeed(seed) {
  if (seed !== undefined && seed !== null) byId('seed').dataset.lastSeed = seed;
}

function changed(event) {
  const { target } = event ?? {};
  if (target?.id && byId(`${target.id}-error`)) {
    byId(`${target.id}-error`).textContent = '';
    target.removeAttribute('aria-invalid');
  }
  const isLocked = byId('seed').value !== '';
  byId('lock').setAttribute('aria-pressed', isLocked);
  byId('lock').title = isLocked ? 'A new seed each time' : 'Keep the seed of the newest clip';
  byId('lock').replaceChildren(icon(isLocked ? 'locked' : 'unlocked'));
  const isInside = byId('model').value === '';
  byId('another').hidden = !isInside;
  const isOwn = !isInside || byId('motion').value || byId('lcm_lora').value;
  for (const id of ['motion-field', 'lcm-field']) byId(id).hidden = !isOwn;
  byId('prompt-help').textContent = isInside
    ? 'The small model inside draws one moving shape on a plain background, and nothing else.'
    : '';
  const isOff = Number(byId('cfg_scale').value || 1) <= 1;
  byId('negative-help').hidden = !(byId('negative').value && isOff);
  const sampler = catalog.samplers.find(({ name }) => name === byId('sampler').value);
  byId('spacing').disabled = sampler?.hasSpacings === false;
  if (byId('spacing').disabled) byId('spacing').value = '';
  byId('strength-field').hidden = !chosen.source;
  save();
}

function save() {
  const values = {};
  for (const id of [
    'prompt',
    'negative',
    'travel',
    'model',
    'motion',
    'lcm_lora',
    'lcm_scale',
    'seed',
    'strength',
    'format',
    ...Object.keys(NUMBERS),
    ...Object.keys(CHOICES),
  ]) {
    values[id] = byId(id).value;
  }
  const plain = ({ preview, ...rest }) => rest;
  const { kept, loras, source, guides } = chosen;
  const stored = {
    values,
    kept,
    loras,
    source: source && plain(source),
    guides: guides.map(plain),
    more: byId('more').open,
  };
  try {
    localStorage.setItem(STORED, JSON.stringify(stored));
  } catch {
    /* private windows have no room: the form works without */
  }
}

function restore() {
  try {
    const stored = JSON.parse(localStorage.getItem(STORED));
    if (!stored) return false;
    const { kept, loras, source, guides } = stored;
    Object.assign(chosen, { kept, loras, source, guides });
    for (const [id, value] of Object.entries(stored.values)) {
      if (byId(id).localName === 'select') choose(byId(id), value);
      else byId(id).value = value;
    }
    byId('more').open = stored.more;
    showLists();
    changed();
    return true;
  } catch {
    return false;
  }
}
