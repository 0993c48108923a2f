// The form: settings from clips, faults at fields, models, LoRAs and pictures.

import assert from 'node:assert/strict';
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { crc32 } from 'node:zlib';

import { close, drop, paste, send, stage, tile, until, visit } from './browser.mjs';
import { Server, folder, run } from './server.mjs';

const PROMPT = 'a purple triangle bouncing on a grey background';
const SETTINGS = {
  size: { width: 48, height: 56, frames: 6 },
  sampling: { steps: 3, seed: 123456789, sampler: 'euler', spacing: 'karras', cfg_scale: 1.5 },
  output: { fps: 10, zoom: 2 },
};
const SHOWN = {
  width: '48',
  height: '56',
  frames: '6',
  steps: '3',
  seed: '123456789',
  sampler: 'euler',
  spacing: 'karras',
  cfg_scale: '1.5',
  fps: '10',
  zoom: '2',
};
const TYPES = { gif: 'image/gif', webp: 'image/webp', apng: 'image/png', mp4: 'video/mp4' };
/// A red picture of 2x2 pixels.
const PICTURE = Buffer.from(
  'iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAIAAAD91JpzAAAAEElEQVR4nGP4z8AARAwQCgAf7gP9i18U1AAAAABJRU5ErkJggg==',
  'base64',
);

/// A safetensors file with one tensor that fits nothing.
function strange() {
  const head = JSON.stringify({
    'lora_unet_nowhere.lora_up.weight': { dtype: 'F32', shape: [1, 1], data_offsets: [0, 4] },
    'lora_unet_nowhere.lora_down.weight': { dtype: 'F32', shape: [1, 1], data_offsets: [4, 8] },
  });
  const size = Buffer.alloc(8);
  size.writeBigUInt64LE(BigInt(head.length));
  return Buffer.concat([size, Buffer.from(head), Buffer.alloc(8)]);
}

/// A PNG in whose texts one is replaced.
function changed(png, from, to) {
  const parts = [png.subarray(0, 8)];
  for (let at = 8; at < png.length;) {
    const end = at + 12 + png.readUInt32BE(at);
    const body = png.toString('latin1', at + 4, end - 4).replace(from, to);
    const part = Buffer.alloc(body.length + 8);
    part.writeUInt32BE(body.length - 4);
    part.write(body, 4, 'latin1');
    part.writeUInt32BE(crc32(part.subarray(4, -4)), part.length - 4);
    parts.push(part);
    at = end;
  }
  return Buffer.concat(parts);
}

let server;
before(async () => {
  const data = folder();
  const models = join(data, 'models');
  mkdirSync(models);
  for (const name of ['ink', 'edges']) writeFileSync(join(models, `${name}.safetensors`), strange());
  writeFileSync(
    join(models, 'catalog.toml'),
    `
[[model]]
name = "ink"
kind = "lora"
file = "ink.safetensors"

[[model]]
name = "edges"
kind = "control"
file = "edges.safetensors"
`,
  );
  server = await Server.start({ data, args: ['--catalog', join(models, 'catalog.toml')] });
});
after(async () => {
  await close();
  await server.end();
});

async function shown(page) {
  const values = {};
  for (const id of Object.keys(SHOWN)) values[id] = await page.inputValue(`#${id}`);
  return values;
}

for (const [format, type] of Object.entries(TYPES)) {
  test(`a dropped clip fills the form, and makes the same bytes: ${format}`, async t => {
    const made = await server.ended((await server.submit(PROMPT, { ...SETTINGS, format })).id);
    assert.equal(made.status, 'completed', JSON.stringify(made.error));
    const clip = await server.content(made.id);
    await server.call('DELETE', `jobs/${made.id}`);
    const page = await visit(t, server);
    await drop(page, '#right', clip, `clip.${format}`, type);
    await until(async () => (await page.inputValue('#prompt')) === PROMPT);
    assert.deepEqual(await shown(page), SHOWN);
    assert.equal(await page.inputValue('#format'), format);
    assert.equal(await page.getAttribute('#lock', 'aria-pressed'), 'true');
    await page.click('#make');
    const again = await until(async () => (await server.jobs()).find(({ status }) => status === 'completed'));
    assert.equal(again.cached, false);
    assert.equal(again.output.sha256, made.output.sha256);
    await server.call('DELETE', `jobs/${again.id}`);
  });
}

test('a frame of the command line fills the form', async t => {
  const place = folder();
  run('generate', PROMPT, '--frames', '2', '--steps', '1', '--seed', '7', '-o', join(place, 'frame_%03d.png'));
  const page = await visit(t, server);
  await drop(page, '#right', readFileSync(join(place, 'frame_001.png')), 'frame_001.png', 'image/png');
  await until(async () => (await page.inputValue('#prompt')) === PROMPT);
  assert.deepEqual([await page.inputValue('#seed'), await page.inputValue('#frames')], ['7', '2']);
});

test('models that the server does not have are named', async t => {
  const place = folder();
  run('generate', PROMPT, '--frames', '2', '--steps', '1', '-o', join(place, 'frame_%03d.png'));
  const clip = changed(readFileSync(join(place, 'frame_001.png')), '"model":null', '"model":"faraway"');
  const page = await visit(t, server);
  await drop(page, '#right', clip, 'frame_001.png', 'image/png');
  await page.waitForSelector('#message:has-text("does not have: faraway")');
  assert.equal(await page.inputValue('#model'), 'faraway');
  await page.click('#make');
  await page.waitForSelector('#model-error:has-text("faraway")');
});

test('a seed of 64 bits keeps its last digit', async t => {
  const seed = '18446744073709551557';
  const page = await visit(t, server);
  const record = await send(page, PROMPT, { seed, frames: 1, steps: 1 });
  await page.waitForSelector(`${stage(record.id)} video`);
  assert.equal(await page.textContent(`${stage(record.id)} .number`), seed);
});

test('files without settings say so, and can be started from', async t => {
  const page = await visit(t, server);
  await drop(page, '#right', 'notes', 'notes.txt', 'text/plain');
  await page.waitForSelector('#message.fault:has-text("notes.txt")');
  await drop(page, '#right', PICTURE, 'red.png', 'image/png');
  await page.click('#message button:text("Start from it")');
  await page.waitForSelector('#source-chosen:has-text("red.png")');
  const { job } = await send(page, PROMPT, { strength: 0.5, steps: 4 });
  assert.match(job.source.image, /^upload:[0-9a-f]{64}$/);
  assert.equal(job.source.strength, 0.5);
});

test('gallery: the same settings, a new seed, and the same clip again', async t => {
  const page = await visit(t, server);
  const made = await server.ended((await server.submit(PROMPT, SETTINGS)).id);
  await server.ended((await server.submit('a red ring growing on a black background')).id);
  await page.click(`${tile(made.id)} button`);
  await page.click('#viewer button:text("Use these settings")');
  assert.deepEqual(await shown(page), SHOWN);
  const sent = async name => {
    const answer = page.waitForResponse(response => response.request().method() === 'POST');
    await page.click(`${tile(made.id)} button`);
    await page.click(`#viewer button:text("${name}")`);
    return (await answer).json();
  };
  const other = await sent('New seed');
  assert.notEqual(other.job.sampling.seed, SETTINGS.sampling.seed);
  assert.deepEqual({ ...other.job.sampling, seed: 0 }, { ...made.job.sampling, seed: 0 });
  await server.ended(other.id);
  const again = await sent('Again');
  await page.waitForSelector(`${stage(again.id)} .facts:has-text("cached")`);
  const record = await server.job(again.id);
  assert.deepEqual([record.cached, record.output.sha256], [true, made.output.sha256]);
});

test('faults are shown at their fields, which get the focus', async t => {
  const page = await visit(t, server);
  const count = (await server.jobs()).length;
  const refused = async (id, message) => {
    await page.click('#make');
    await until(async () => message.test(await page.textContent(`#${id}-error`)), 5000);
    assert.equal(await page.evaluate(() => document.activeElement.id), id);
    assert.equal(await page.getAttribute(`#${id}`, 'aria-invalid'), 'true');
  };
  await page.fill('#frames', '0');
  await refused('frames', /at least 1/i);
  assert.equal(await page.inputValue('#frames'), '0');
  await page.fill('#frames', '4');
  assert.equal(await page.textContent('#frames-error'), '');
  await page.fill('#prompt', 'a (red star moving up');
  await refused('prompt', /bracket/);
  assert.equal(await page.inputValue('#prompt'), 'a (red star moving up');
  await page.fill('#prompt', PROMPT);
  await page.fill('#seed', '18446744073709551616');
  await refused('seed', /whole number/i);
  await page.fill('#seed', '');
  // The server finds this one, at once or when the job starts.
  await page.fill('#width', '513');
  await page.click('#make');
  await page.waitForSelector('#width-error:has-text("513"), #stage .fault:has-text("513")');
  assert.equal(await page.inputValue('#width'), '513');
  assert.ok((await server.jobs()).length <= count + 1);
});

test('models and LoRAs are those of the server; one that does not fit fails on its card', async t => {
  const page = await visit(t, server);
  const { data } = await server.call('GET', 'models');
  const models = data.filter(({ kind }) => kind === 'model').length;
  assert.equal(await page.locator('#model option').count(), models);
  await page.click('#lora-add');
  await page.selectOption('#lora-list select', 'ink');
  const { id, job } = await send(page, PROMPT);
  assert.equal(job.models.loras[0].file, 'ink');
  await page.waitForSelector(`${stage(id)} .fault`);
  const { error, status } = await server.job(id);
  assert.equal(status, 'failed');
  const text = (await page.textContent(`${stage(id)} .fault`)).toLowerCase();
  assert.ok(text.includes(error.message.toLowerCase()), text);
  assert.ok(!error.hint || text.includes(error.hint.toLowerCase()), text);
});

test('a picture to follow is sent as an upload; what is no picture is refused by name', async t => {
  const page = await visit(t, server);
  await page.click('summary');
  await page.setInputFiles('#guide-add', { name: 'notes.png', mimeType: 'image/png', buffer: Buffer.from('notes') });
  await page.waitForSelector('#control-error:has-text("notes.png")');
  await drop(page, '#guides', PICTURE, 'edges.png', 'image/png');
  await page.waitForSelector('#guide-list img.thumb');
  await paste(page, '#guide-add', PICTURE, 'pasted.png', 'image/png');
  await page.waitForSelector('#guide-list :text("pasted.png")');
  await page.getByLabel('Remove pasted.png').click();
  await page.getByLabel('Strength').last().fill('0.7');
  await page.getByLabel('To', { exact: true }).fill('0.5');
  const { job } = await send(page, PROMPT);
  assert.equal(job.controls.length, 1);
  const [{ hint, model, scale, end }] = job.controls;
  assert.match(hint, /^upload:[0-9a-f]{64}$/);
  assert.deepEqual({ model, scale, end }, { model: 'edges', scale: 0.7, end: 0.5 });
});

test('the form is kept in the browser, and words are weighed by keys', async t => {
  const page = await visit(t, server);
  await page.fill('#prompt', 'a red star');
  await page.evaluate(() => document.getElementById('prompt').setSelectionRange(2, 5));
  await page.focus('#prompt');
  await page.keyboard.press('Control+ArrowUp');
  await page.keyboard.press('Control+ArrowUp');
  assert.equal(await page.inputValue('#prompt'), 'a (red:1.2) star');
  await page.keyboard.press('Control+ArrowDown');
  await page.keyboard.press('Control+ArrowDown');
  await page.keyboard.press('Control+ArrowDown');
  assert.equal(await page.inputValue('#prompt'), 'a (red:0.9) star');
  await page.fill('#steps', '7');
  await page.click('summary');
  await page.selectOption('#format', 'gif');
  await page.reload();
  await page.waitForSelector('#right[data-state=ready]');
  assert.equal(await page.inputValue('#prompt'), 'a (red:0.9) star');
  assert.equal(await page.inputValue('#steps'), '7');
  assert.equal(await page.inputValue('#format'), 'gif');
});
