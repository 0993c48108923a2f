// The dialogs: one clip in large, and the question before one is deleted.

import { byId } from './dom.js';
import { Stage } from './cards.js';
import { hasEnded, promptOf, records, sorted } from './records.js';

/// The clip that is looked at, its view, what buttons do, and how older clips are had.
let viewed = null,
  stage = null,
  act,
  older;

export function startViewer(does, showOlder) {
  act = does;
  older = showOlder;
  byId('viewer-close').addEventListener('click', closeViewer);
  byId('viewer').addEventListener('close', forgetView);
  byId('viewer').addEventListener('click', event => {
    if (event.target === byId('viewer')) closeViewer();
  });
  byId('viewer').addEventListener('keydown', event => {
    if (event.key === 'ArrowLeft') walk(-1);
    else if (event.key === 'ArrowRight') walk(1);
  });
  byId('newer').addEventListener('click', () => walk(-1));
  byId('later').addEventListener('click', () => walk(1));
  byId('confirm-no').addEventListener('click', () => byId('confirm').close());
  byId('confirm-yes').addEventListener('click', () => {
    byId('confirm').close();
    confirmed?.();
  });
}

const ids = () => sorted(hasEnded).map(({ id }) => id);

export function view(id) {
  stage?.end();
  stage = null;
  viewed = id;
  drawViewer();
  if (!byId('viewer').open) byId('viewer').showModal();
}

export function drawViewer() {
  if (!viewed) return;
  const record = records.get(viewed);
  if (!record) return closeViewer();
  stage ??= new Stage(record, act);
  stage.update(record);
  if (byId('viewer-card').firstElementChild !== stage.node) byId('viewer-card').replaceChildren(stage.node);
  const all = ids();
  const at = all.indexOf(viewed);
  byId('viewer-place').textContent = at < 0 ? '' : `${at + 1} of ${all.length}${older.hasMore() ? ' and more' : ''}`;
  byId('newer').disabled = at <= 0;
  byId('later').disabled = at < 0 || (at === all.length - 1 && !older.hasMore());
}

async function walk(by) {
  const at = ids().indexOf(viewed) + by;
  if (at >= ids().length && older.hasMore()) await older.show();
  if (ids()[at]) view(ids()[at]);
}

export function closeViewer() {
  if (byId('viewer').open) byId('viewer').close();
}

function forgetView() {
  stage?.end();
  stage = null;
  viewed = null;
  byId('viewer-card').replaceChildren();
}

let confirmed = null;
/// Asks before a clip is deleted.
export function confirm(record, does) {
  byId('confirm-text').textContent = `Delete “${promptOf(record)}”?`;
  confirmed = does;
  byId('confirm').showModal();
  byId('confirm-no').focus();
}
