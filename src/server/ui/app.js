// The page of the server: jobs and their events, and the clips that came of them.

import { address, call, json, parse, randomKey, stringify, upload } from './api.js';
import { Stage, Tile, Waiting, reconcile } from './cards.js';
import { button, byId, element, icon, isStill } from './dom.js';
import { showFault } from './faults.js';
import { listenForFiles } from './files.js';
import * as form from './form.js';
import { startLogin } from './login.js';
import { addGuide, setSource } from './lists.js';
import { announce, say } from './messages.js';
import { explain, formatOf, hasEnded, live, percent, records, seedOf, sorted, take } from './records.js';
import { closeViewer, confirm, drawViewer, startViewer, view } from './viewer.js';

const PAGE = 30;
/// Decoding is about as much work as so many steps: the server counts so, too.
const DECODE = 3;
let capabilities = {},
  catalog;
/// The clip on the stage while nothing runs.
let staged = null;
/// The oldest clip that was asked for, and whether there are more.
let oldest = null,
  hasMore = false;

// Sending

/// The last request that got no answer: sent again it has the same key, so that it makes one job.
let unanswered = null;

async function send(job, format) {
  const body = stringify(job);
  const path = `jobs?format=${encodeURIComponent(format)}`;
  const isAgain = unanswered?.body === body && unanswered.path === path;
  const key = isAgain ? unanswered.key : randomKey();
  unanswered = { body, path, key };
  try {
    const record = await call('POST', path, { body, headers: { ...json, 'Idempotency-Key': key } });
    unanswered = null;
    // Events may have told more by now.
    if (!records.has(record.id)) take(record);
    if (hasEnded(record)) staged = record.id;
    show();
    say(record.cached ? 'This clip was there already.' : '');
    announce(record.cached ? 'This clip was there already.' : 'The clip is queued.');
    const { top } = byId('now').getBoundingClientRect();
    if (top < 0 || top > innerHeight / 2) {
      byId('now').scrollIntoView({ behavior: isStill.matches ? 'auto' : 'smooth', block: 'start' });
    }
    return record;
  } catch (error) {
    if (error.code !== 'network') unanswered = null;
    const text = explain(error);
    if (!(error.status === 400 || error.status === 404) || !showFault(error.param, text)) say(text, 'fault');
    return null;
  }
}

async function make() {
  const request = form.read();
  if (!request) return announce('Something in the form is not right.');
  byId('make').disabled = true;
  try {
    await send(request.job, request.format);
  } finally {
    byId('make').disabled = false;
    if (document.activeElement === document.body) byId('make').focus();
  }
}

// Events

let stream = null,
  retry = null,
  gap = 1000;

function disconnect() {
  clearTimeout(retry);
  stream?.close();
  byId('connection').textContent = '';
}

function connect() {
  clearTimeout(retry);
  stream?.close();
  stream = new EventSource(address('events'));
  stream.addEventListener('open', () => {
    gap = 1000;
    byId('connection').textContent = '';
    byId('connection').className = '';
    inTurn(() => Promise.all([refresh(), load()]));
  });
  const names = [
    'queued',
    'start',
    'load',
    'ready',
    'pass',
    'step',
    'decode',
    'encode',
    'preview',
    'warning',
    'done',
    'cancelled',
    'expired',
    'deleted',
  ];
  for (const name of names) stream.addEventListener(name, event => inTurn(() => heard(event)));
  stream.addEventListener('error', event => {
    // The server's own `error` has data, a broken connection has none.
    if (event.data !== undefined) return inTurn(() => heard(event));
    if (byId('login').open) return stream.close();
    byId('connection').textContent = 'The server is not answering. Trying again…';
    byId('connection').className = 'fault';
    if (stream.readyState === EventSource.CLOSED) {
      retry = setTimeout(connect, gap);
      gap = Math.min(gap * 1.5, 10000);
    }
  });
}

/// What is heard is done one after the other, although some of it waits for answers.
let turn = Promise.resolve();
function inTurn(does) {
  turn = turn.then(does).catch(() => {});
}

async function heard({ type, data }) {
  const event = parse(data);
  const id = event.job;
  if (type === 'deleted') return forget(id);
  if (!records.has(id) && !(await fetchRecord(id))) return;
  const record = records.get(id);
  const now = live.get(id) ?? { warnings: [] };
  live.set(id, now);
  if (type === 'warning') {
    if (!now.warnings.includes(event.message)) now.warnings.push(event.message);
    return show();
  }
  if (type === 'queued') {
    if (hasEnded(record)) return;
    live.set(id, { warnings: [] });
    Object.assign(record, { status: 'queued', progress: 0, position: event.position });
    show();
    return later();
  }
  if (['done', 'error', 'cancelled', 'expired'].includes(type)) {
    const ended = await fetchRecord(id);
    if (!ended) return;
    if (type === 'expired') return show();
    if (hasEnded(ended)) staged = id;
    announce(
      { done: 'The clip is done.', error: `The clip failed: ${ended.error?.message ?? ''}`, cancelled: 'Cancelled.' }[
        type
      ],
    );
    show();
    return later();
  }
  if (hasEnded(record)) return;
  if (record.status === 'queued') later();
  record.status = 'running';
  if (type === 'start') Object.assign(now, { phase: undefined, step: 0, steps: event.steps, size: event });
  else if (type === 'load') now.phase = `loading ${event.part}`;
  else if (type === 'ready') now.phase = undefined;
  else if (type === 'step') {
    Object.assign(now, { phase: undefined, step: event.step, steps: event.steps, eta: event.eta_seconds });
    record.progress = event.step / (event.steps + DECODE);
    announce(`Step ${event.step} of ${event.steps}`, false);
  } else if (type === 'decode') {
    Object.assign(now, { phase: `decoding ${event.frame}/${event.frames}`, eta: null });
    record.progress = Math.min(0.999, (now.steps + (DECODE * event.frame) / event.frames) / (now.steps + DECODE));
  } else if (type === 'encode') Object.assign(now, { phase: 'writing the file', eta: null });
  else if (type === 'preview') now.preview = { ...event, count: (now.preview?.count ?? 0) + 1 };
  show();
}

async function fetchRecord(id) {
  try {
    return take(await call('GET', `jobs/${id}`));
  } catch (error) {
    if (error.status === 404) forget(id);
    return null;
  }
}

function forget(id) {
  records.delete(id);
  live.delete(id);
  if (staged === id) staged = null;
  show();
}

function forgetAll() {
  records.clear();
  live.clear();
  staged = null;
  byId('logout').hidden = true;
  draw();
}

/// Positions in the queue change when one of its jobs leaves it.
let soon = null;
function later() {
  clearTimeout(soon);
  soon = setTimeout(() => inTurn(readQueue), 250);
}

async function readQueue() {
  if (!sorted(({ status }) => status === 'queued').length) return;
  const { data } = await call('GET', 'jobs?status=queued&limit=100&order=asc');
  data.forEach(take);
  show();
}

/// Reads the newest page, what runs and what waits; forgets what is no longer there.
async function refresh() {
  const pages = await Promise.all([
    call('GET', `jobs?limit=${PAGE}&order=desc`),
    call('GET', 'jobs?status=running&limit=100&order=asc'),
    call('GET', 'jobs?status=queued&limit=100&order=asc'),
  ]);
  const [newest] = pages;
  const there = new Set(pages.flatMap(({ data }) => data.map(({ id }) => id)));
  const reach = newest.has_more ? newest.data.at(-1)?.id : '';
  for (const [id, record] of records) {
    if (!there.has(id) && (id >= reach || !hasEnded(record))) records.delete(id);
  }
  pages.flatMap(({ data }) => data).forEach(take);
  if (oldest === null || !records.has(oldest)) {
    oldest = newest.data.at(-1)?.id ?? null;
    hasMore = Boolean(newest.has_more);
  }
  if (staged && !records.has(staged)) staged = null;
  byId('right').dataset.state = 'ready';
  show();
}

async function showOlder() {
  const { data, has_more: more } = await call('GET', `jobs?limit=${PAGE}&order=desc&after=${oldest}`);
  data.forEach(take);
  oldest = data.at(-1)?.id ?? oldest;
  hasMore = Boolean(more);
  show();
  byId('tiles').children[byId('tiles').children.length - data.length]?.querySelector('button')?.focus();
}

// What is shown

let isPlanned = false;
function show() {
  if (isPlanned) return;
  isPlanned = true;
  // Timers, unlike frames, also come in tabs that are not seen.
  setTimeout(() => {
    isPlanned = false;
    draw();
  }, 16);
}

function draw() {
  const running = sorted(({ status }) => status === 'running').reverse();
  const waiting = sorted(({ status }) => status === 'queued').sort(
    (a, b) => (a.position ?? 1e9) - (b.position ?? 1e9) || (a.id < b.id ? -1 : 1),
  );
  const ended = sorted(hasEnded);
  const lone = records.get(staged) ?? ended[0];
  const onStage = running.length ? running : lone ? [lone] : [];
  reconcile(byId('stage'), onStage, Stage, act);
  if (!onStage.length && byId('right').dataset.state === 'ready')
    byId('stage').replaceChildren(emptyStage(waiting.length));
  reconcile(byId('waiting'), waiting, Waiting, act);
  byId('queue').hidden = !waiting.length;
  const tiles = ended.filter(record => !onStage.includes(record) && (oldest === null || record.id >= oldest));
  reconcile(byId('tiles'), tiles, Tile, act);
  byId('older').hidden = !hasMore;
  byId('gallery').hidden = !tiles.length && !hasMore;
  const [first] = running;
  const newest = ended.find(({ status }) => status === 'completed');
  if (newest) form.setLastSeed(seedOf(newest));
  const doing = first ? `${percent(first)} % · ` : waiting.length ? 'waiting · ' : '';
  document.title = `${doing}animatelcm`;
  drawViewer();
}

function emptyStage(count) {
  const text = count
    ? 'The next clip is about to start.'
    : 'No clips yet. Press “Make the clip”: the prompt in the form works as it is.';
  return element('div', { className: 'empty' }, icon('mark'), element('p', {}, text));
}

// What can be done with a job

const act = { announce, cancel, remove, repeat, use, view };

function use(id) {
  const record = records.get(id);
  closeViewer();
  const missing = form.fill(record.job, { format: formatOf(record) });
  say(['The settings of the clip are in the form.', named(missing)].filter(Boolean).join(' '));
  byId('prompt').focus();
}

const named = missing => (missing.length ? `This server does not have: ${missing.join(', ')}.` : '');

/// The request of a job without the record of what it was made with.
function requestOf({ job }) {
  const { weights, program, ...request } = structuredClone(job);
  return request;
}

async function repeat(id, hasNewSeed) {
  const record = records.get(id);
  closeViewer();
  const request = requestOf(record);
  if (hasNewSeed) delete request.sampling?.seed;
  await send(request, formatOf(record));
}

async function cancel(id) {
  try {
    take(await call('POST', `jobs/${id}/cancel`));
    if (hasEnded(records.get(id))) staged = id;
    announce('Cancelled.');
    show();
    later();
  } catch (error) {
    say(explain(error), 'fault');
  }
}

function remove(id) {
  confirm(records.get(id), async () => {
    try {
      await call('DELETE', `jobs/${id}`);
      forget(id);
      announce('Deleted.');
    } catch (error) {
      say(explain(error), 'fault');
    }
  });
}

// Files

const FORMATS = {
  'image/gif': 'gif',
  'image/webp': 'webp',
  'image/png': 'apng',
  'image/apng': 'apng',
  'video/mp4': 'mp4',
};

async function dropped(file) {
  if (!file) return;
  let job;
  try {
    const body = new FormData();
    body.append('file', file, file.name);
    const answer = await call('POST', 'inspect', { body });
    job = answer.job ?? answer;
  } catch (error) {
    if (error.code === 'network' || error.status === 401 || error.status === 413) return say(explain(error), 'fault');
    const isPicture = /^(image|video)\//.test(file.type);
    const offers = isPicture
      ? [
          button('Start from it', () => {
            say('');
            setSource(file);
          }),
        ]
      : [];
    if (isPicture && catalog.guides.length)
      offers.push(
        button('Follow it', () => {
          say('');
          addGuide(file);
        }),
      );
    return say(
      `${file.name} has no settings of a clip in it.${isPicture ? '' : ` ${explain(error)}`}`,
      isPicture ? '' : 'fault',
      ...offers,
    );
  }
  const format = FORMATS[file.type];
  const missing = form.fill(job, { format: capabilities.formats?.includes(format) ? format : undefined });
  const text = [`The settings of ${file.name} are in the form.`, named(missing)].filter(Boolean).join(' ');
  say(text, missing.length ? 'warning' : '');
  byId('make').focus();
}

function into(target, file) {
  const zone = target.closest?.('.drop');
  if (zone?.id === 'source-zone') return setSource(file);
  if (zone?.id === 'guides') return addGuide(file);
  return dropped(file);
}

// Start

/// The mark as the tab's icon: made here, since the page's files are few and its policy allows no `data:`.
function drawIcon() {
  const mark = byId('icon-mark').cloneNode(true);
  const svg = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24" color="#3647b8">${mark.innerHTML}</svg>`;
  const href = URL.createObjectURL(new Blob([svg], { type: 'image/svg+xml' }));
  document.head.append(element('link', { rel: 'icon', type: 'image/svg+xml', href }));
}

/// Reads what the server can, in the form that the page needs.
async function load() {
  const [list, can] = await Promise.all([call('GET', 'models'), call('GET', 'capabilities')]);
  capabilities = can;
  byId('logout').hidden = !can.needs_key;
  const found = readCatalog(list.data, can);
  if (JSON.stringify(found) === JSON.stringify(catalog)) return;
  catalog = found;
  form.setCatalog(catalog);
}

function readCatalog(data, can) {
  const ofKind = (...kinds) => data.filter(({ kind = 'model' }) => kinds.includes(kind));
  // LCM and TCD take the teacher's timesteps.
  const entry = name => ({ name, hasSpacings: !['lcm', 'tcd'].includes(name) });
  return {
    models: ofKind('model').map(model => ({ ...model, value: model.embedded ? '' : model.id })),
    loras: ofKind('lora'),
    motions: ofKind('motion'),
    guides: ofKind('control', 'ip-adapter'),
    samplers: (can.samplers ?? []).map(entry),
    spacings: can.spacings ?? [],
    formats: can.formats ?? ['mp4'],
    preprocessors: can.preprocessors ?? [],
  };
}

async function begin() {
  try {
    await load();
  } catch (error) {
    if (error.status !== 401) setTimeout(begin, 2000);
    if (error.status !== 401) byId('connection').textContent = 'The server is not answering. Trying again…';
    return;
  }
  connect();
}

function listen() {
  const older = () => showOlder().catch(error => say(explain(error), 'fault'));
  byId('older').addEventListener('click', older);
  startLogin({ asked: disconnect, entered: begin, left: forgetAll });
  startViewer(act, { show: older, hasMore: () => hasMore });
  isStill.addEventListener('change', () => location.reload());
  listenForFiles(into);
}

drawIcon();
form.start(upload, make);
listen();
await begin();
