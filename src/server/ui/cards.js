// Jobs and clips as they are shown: on the stage, in the queue, in the gallery.

import { jobAddress } from './api.js';
import { button, element, isStill } from './dom.js';
import { explain, facts, formatOf, hasEnded, live, percent, progressText, promptOf, seedOf } from './records.js';

const ENDS = { failed: 'failed', cancelled: 'cancelled', expired: 'no longer kept' };

/// Makes the children of `parent` the views of these records, and keeps those that are there already.
/// `act` has what buttons do: `use`, `repeat`, `remove`, `cancel`, `view`, `announce`.
export function reconcile(parent, wanted, View, act) {
  const views = (parent.views ??= new Map());
  const ids = new Set(wanted.map(({ id }) => id));
  for (const [id, view] of views) {
    if (!ids.has(id)) {
      views.delete(id);
      view.end?.();
      view.node.remove();
    }
  }
  if (wanted.length) for (const child of [...parent.children]) if (!child.dataset.job) child.remove();
  wanted.forEach((record, i) => {
    let view = views.get(record.id);
    if (!view) {
      view = new View(record, act);
      view.node.dataset.job = record.id;
      views.set(record.id, view);
    }
    view.update(record);
    if (parent.children[i] !== view.node) parent.insertBefore(view.node, parent.children[i] ?? null);
  });
}

/// A job that runs, or a clip, in large: its screen, facts and what can be done with it.
export class Stage {
  constructor(record, act) {
    this.act = act;
    this.screen = element('div', { className: 'screen' });
    this.prompt = element('p', { className: 'prompt' });
    this.facts = element('p', { className: 'facts' });
    this.seed = element('p', { className: 'facts seed' });
    this.ending = element('p', { className: 'ending' });
    this.bar = element('progress', { max: 100, 'aria-label': 'Progress' });
    this.text = element('p', { className: 'state' });
    this.notes = element('div', { className: 'notes' });
    this.buttons = element('div', { className: 'row wrap' });
    this.node = element(
      'article',
      { className: 'stage' },
      this.screen,
      element(
        'div',
        { className: 'about' },
        this.prompt,
        this.ending,
        this.bar,
        this.text,
        this.notes,
        this.facts,
        this.seed,
        this.buttons,
      ),
    );
  }

  update(record) {
    const { status, error } = record;
    const now = live.get(record.id) ?? {};
    const isRunning = !hasEnded(record);
    this.prompt.textContent = promptOf(record);
    this.facts.textContent = facts(record);
    this.bar.hidden = !isRunning;
    this.bar.value = percent(record);
    this.text.hidden = !isRunning;
    this.text.textContent = progressText(record);
    this.updateSeed(seedOf(record));
    const notes = (now.warnings ?? []).map(message => element('p', { className: 'warning' }, message));
    if (error && status === 'failed') notes.unshift(element('p', { className: 'fault' }, explain(error)));
    const noted = notes.map(({ textContent }) => textContent).join('\n');
    if (this.noted !== noted) this.notes.replaceChildren(...notes);
    this.noted = noted;
    if (this.status !== status) {
      this.status = status;
      this.buttons.replaceChildren(...actions(record, this.act));
      this.end();
      this.screen.replaceChildren();
      if (isRunning) this.player = new Preview(this.screen, record);
      else if (status === 'completed') {
        const { width = 1, height = 1 } = record.output ?? {};
        this.screen.style.aspectRatio = `${width} / ${height}`;
        this.screen.replaceChildren(media(record));
      }
      this.node.classList.toggle('ended', status in ENDS);
      this.screen.hidden = status in ENDS;
      this.ending.textContent = ENDS[status] ?? '';
    }
    this.player?.update(record, now.preview);
  }

  updateSeed(seed) {
    if (this.shownSeed === seed) return;
    this.shownSeed = seed;
    if (seed === undefined || seed === null) return this.seed.replaceChildren();
    const copy = button(
      'Copy',
      async () => {
        await navigator.clipboard?.writeText(String(seed)).then(
          () => this.act.announce('Copied.'),
          () => {},
        );
        copy.textContent = 'Copied';
        setTimeout(() => {
          copy.textContent = 'Copy';
        }, 1500);
      },
      { className: 'link', 'aria-label': `Copy seed ${seed}` },
    );
    this.seed.replaceChildren('Seed ', element('span', { className: 'number' }, String(seed)), ' ', copy);
  }

  end() {
    this.player?.end();
    this.player = null;
  }
}

/// A job that waits.
export class Waiting {
  constructor(record, act) {
    this.place = element('span', { className: 'place' });
    this.prompt = element('span', { className: 'prompt line' }, promptOf(record));
    this.node = element(
      'li',
      {},
      this.place,
      this.prompt,
      button('Cancel', () => act.cancel(record.id), { 'aria-label': `Cancel ${promptOf(record)}` }),
    );
  }

  update({ position }) {
    this.place.textContent = position ? `${position}` : '–';
    this.place.title = position ? `Position ${position}` : '';
  }
}

/// A clip in the gallery, which moves while the pointer or the focus is on it.
export class Tile {
  constructor(record, act) {
    this.node = element('li', {});
    this.key = null;
    this.act = act;
  }

  update(record) {
    const key = `${record.status} ${record.output?.sha256}`;
    if (this.key === key) return;
    this.key = key;
    const words = ENDS[record.status];
    const open = element('button', {
      type: 'button',
      className: 'tile',
      'aria-label': `${promptOf(record)}${words ? `, ${words}` : ''}`,
    });
    open.addEventListener('click', () => this.act.view(record.id));
    if (words) open.append(element('span', { className: 'screen blank' }, element('span', {}, words)));
    else {
      const still = element('span', { className: 'screen' }, thumbnail(record));
      const move = () => {
        if (!isStill.matches && !still.querySelector('video, .moving')) still.replaceChildren(media(record, true));
      };
      const rest = () => {
        if (document.activeElement !== open) still.replaceChildren(thumbnail(record));
      };
      for (const name of ['pointerenter', 'focus']) open.addEventListener(name, move);
      for (const name of ['pointerleave', 'blur']) open.addEventListener(name, rest);
      open.append(still);
    }
    open.append(element('span', { className: 'prompt line' }, promptOf(record)));
    this.node.replaceChildren(open);
  }
}

/// Frames of the newest preview, one after the other on a canvas.
class Preview {
  constructor(screen, { job }) {
    this.canvas = element('canvas', { width: 64, height: 64, role: 'img', 'aria-label': 'Preview of the clip' });
    this.fps = job?.output?.fps ?? 8;
    this.frame = 0;
    this.note = element('p', {}, 'The clip is being made.');
    screen.classList.add('blank');
    screen.append(this.note);
    this.screen = screen;
  }

  update(record, preview) {
    // After a reload the record has the one that was made last.
    preview ??= record.preview;
    if (!preview || (preview.count ?? 0) === this.count) return;
    this.count = preview.count ?? 0;
    const image = new Image();
    image.onload = () => {
      this.image = image;
      const frames = preview.frames ?? record.job?.size?.frames ?? 16;
      this.columns = preview.columns ?? frames;
      this.frames = frames;
      this.width = Math.floor(image.naturalWidth / this.columns);
      this.height = Math.floor(image.naturalHeight / Math.ceil(frames / this.columns));
      Object.assign(this.canvas, { width: this.width, height: this.height });
      this.screen.style.aspectRatio = `${this.width} / ${this.height}`;
      this.canvas.dataset.frames = frames;
      this.canvas.dataset.previews = Number(this.canvas.dataset.previews ?? 0) + 1;
      if (this.note) {
        this.note.replaceWith(this.canvas);
        this.note = null;
        this.screen.classList.remove('blank');
      }
      this.paint();
      clearInterval(this.timer);
      if (!isStill.matches)
        this.timer = setInterval(() => {
          this.frame += 1;
          this.paint();
        }, 1000 / this.fps);
    };
    image.src = `${jobAddress(record.id, '/preview')}?n=${this.count}-${percent(record)}`;
  }

  paint() {
    const frame = this.frame % this.frames;
    const [x, y] = [frame % this.columns, Math.floor(frame / this.columns)];
    this.canvas
      .getContext('2d')
      .drawImage(this.image, x * this.width, y * this.height, this.width, this.height, 0, 0, this.width, this.height);
  }

  end() {
    clearInterval(this.timer);
  }
}

/// A finished clip, playing; with less motion asked for it waits for a click.
function media(record, isTile = false) {
  const { output } = record;
  const label = `Clip: ${promptOf(record)}`;
  const source = jobAddress(record.id, '/content');
  const className = Math.max(output?.width ?? 0, output?.height ?? 0) <= 192 ? 'small' : '';
  if (formatOf(record) === 'mp4') {
    const plays = !isStill.matches;
    return element('video', {
      className,
      src: source,
      muted: true,
      loop: true,
      autoplay: plays,
      playsInline: true,
      controls: !plays && !isTile,
      width: output?.width,
      height: output?.height,
      'aria-label': label,
    });
  }
  const still = thumbnail(record);
  if (formatOf(record) === 'y4m' || (isTile && isStill.matches)) return still;
  const moving = element('img', {
    className: `${className} moving`,
    src: source,
    alt: label,
    width: output?.width,
    height: output?.height,
  });
  if (!isStill.matches) return moving;
  const play = button('Play', () => play.replaceWith(moving), { className: 'play', 'aria-label': `Play ${label}` });
  play.prepend(still);
  return play;
}

function thumbnail(record) {
  const { output } = record;
  const className = Math.max(output?.width ?? 0, output?.height ?? 0) <= 192 ? 'small' : '';
  return element('img', {
    className,
    src: jobAddress(record.id, '/content?variant=thumbnail'),
    alt: '',
    loading: 'lazy',
    width: output?.width,
    height: output?.height,
  });
}

function actions(record, act) {
  const { id, status } = record;
  if (!hasEnded(record)) return [button('Cancel', () => act.cancel(id))];
  const buttons = [
    button('Use these settings', () => act.use(id)),
    button('New seed', () => act.repeat(id, true)),
    button(status === 'completed' ? 'Again' : 'Try again', () => act.repeat(id, false)),
  ];
  if (status === 'completed') buttons.push(download(record));
  buttons.push(button('Delete', () => act.remove(id)));
  return buttons;
}

function download(record) {
  const slug =
    promptOf(record)
      .toLowerCase()
      .replace(/[^a-z0-9]+/g, '-')
      .replace(/^-|-$/g, '')
      .slice(0, 60) || 'clip';
  const ending = formatOf(record) === 'apng' ? 'png' : formatOf(record);
  return element(
    'a',
    {
      className: 'button quiet',
      href: jobAddress(record.id, '/content'),
      download: `${slug}-${seedOf(record) ?? record.id}.${ending}`,
    },
    'Download',
  );
}
