// A job from the prompt to the clip: progress, reloads, a server that dies, cancelling, the queue.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';

import { close, send, stage, until, visit } from './browser.mjs';
import { Server } from './server.mjs';

const PROMPT = 'a yellow star moving up on a navy background';
/// Steps of a job that can be watched.
const LONG = { steps: 24 };

let server;
before(async () => {
  server = await Server.start();
});
after(async () => {
  await close();
  await server.end();
});

/// Ends what earlier tests left.
async function quiet() {
  for (const { id, status } of await server.jobs()) {
    if (['queued', 'running'].includes(status)) await server.call('POST', `jobs/${id}/cancel`);
  }
  await until(async () => (await server.jobs()).every(({ status }) => !['queued', 'running'].includes(status)));
}

test('the form comes with a prompt that makes a clip', async t => {
  const page = await visit(t, server);
  const prompt = await page.inputValue('#prompt');
  await page.click('#make');
  await page.waitForSelector('#stage video');
  const [record] = await server.jobs();
  assert.equal(record.job.prompt.text, prompt);
  assert.equal(record.status, 'completed');
  assert.equal(await page.locator('#stage .warning').count(), 0);
});

test('Ctrl+Enter makes one job, whose card tells steps, percent and time', async t => {
  const page = await visit(t, server);
  const count = (await server.jobs()).length;
  const first = await send(page, PROMPT, LONG);
  const second = await send(page, PROMPT);
  assert.equal((await server.jobs()).length, count + 2);
  await page.waitForSelector(`#waiting [data-job="${second.id}"] .place:text-is("1")`);
  const state = page.locator(`${stage(first.id)} .state`);
  await until(async () => /step \d+\/24 · \d+ %/.test(await state.textContent()));
  await until(async () => /^\d+ % · /.test(await page.title()));
  await page.waitForSelector(`${stage(second.id)} video`);
  const video = page.locator(`${stage(second.id)} video`);
  const { muted, loop } = await video.evaluate(({ muted, loop }) => ({ muted, loop }));
  assert.deepEqual({ muted, loop }, { muted: true, loop: true });
  await until(() => video.evaluate(({ paused, currentTime }) => !paused && currentTime > 0.2));
  assert.equal(await page.title(), 'animatelcm');
});

test('previews change and have as many frames as the clip', async t => {
  const page = await visit(t, server);
  const { id } = await send(page, PROMPT, { ...LONG, frames: 12 });
  const canvas = page.locator(`${stage(id)} canvas`);
  await until(async () => (await canvas.count()) && Number(await canvas.getAttribute('data-previews')) >= 2, 20_000);
  assert.equal(await canvas.getAttribute('data-frames'), '12');
  const picture = () => canvas.evaluate(element => element.toDataURL());
  const before = await picture();
  await until(async () => (await picture()) !== before);
  await page.waitForSelector(`${stage(id)} video`);
  assert.equal((await server.job(id)).output.frames, 12);
});

test('after a reload, and in a second tab, the job goes on', async t => {
  const page = await visit(t, server);
  const { id } = await send(page, PROMPT, LONG);
  const count = (await server.jobs()).length;
  const bar = page.locator(`${stage(id)} progress`);
  await until(async () => (await bar.count()) && (await bar.evaluate(({ value }) => value)) > 5);
  const before = await bar.evaluate(({ value }) => value);
  await page.reload();
  await page.waitForSelector(stage(id));
  const second = await visit(t, server, { context: page.context() });
  for (const tab of [page, second]) {
    await until(async () => (await tab.locator(`${stage(id)} progress`).evaluate(({ value }) => value)) >= before);
  }
  for (const tab of [page, second]) await tab.waitForSelector(`${stage(id)} video`);
  assert.equal((await server.jobs()).length, count);
});

test('a server that dies and comes back finishes the job', async t => {
  let mortal = await Server.start();
  t.after(() => mortal.end());
  const page = await visit(t, mortal);
  const { id } = await send(page, PROMPT, LONG);
  await until(async () => (await mortal.job(id)).status === 'running');
  await mortal.kill();
  await page.waitForSelector('#connection:has-text("not answering")');
  mortal = await mortal.restart();
  await page.waitForSelector('#connection:empty', { state: 'attached' });
  await page.waitForSelector(`${stage(id)} video`, { timeout: 90_000 });
  const record = await mortal.job(id);
  assert.equal(record.status, 'completed');
  assert.equal(record.attempt, 2);
});

test('waiting and running jobs can be cancelled, and the next one starts', async t => {
  await quiet();
  const page = await visit(t, server);
  const running = await send(page, PROMPT, LONG);
  const waiting = await send(page, 'a blue ring growing on a white background', LONG);
  const next = await send(page, PROMPT, { steps: 4 });
  await page.click(`#waiting [data-job="${waiting.id}"] button`);
  await until(async () => (await server.job(waiting.id)).status === 'cancelled');
  await page.waitForSelector(`#waiting [data-job="${waiting.id}"]`, { state: 'detached' });
  await page.click(`${stage(running.id)} button:text("Cancel")`);
  await until(async () => (await server.job(running.id)).status === 'cancelled', 15_000);
  await page.waitForSelector(`${stage(next.id)} video`);
  await page.waitForSelector(`#tiles [data-job="${running.id}"]:has-text("cancelled")`);
});

test('the seed that was drawn stands on the card and can be copied', async t => {
  const page = await visit(t, server);
  await page.context().grantPermissions(['clipboard-read', 'clipboard-write']);
  const record = await send(page, PROMPT);
  const seed = String(record.job.sampling.seed);
  await page.waitForSelector(`${stage(record.id)} video`);
  assert.equal(await page.textContent(`${stage(record.id)} .number`), seed);
  await page.click(`${stage(record.id)} button:text("Copy")`);
  await until(async () => (await page.evaluate(() => navigator.clipboard.readText())) === seed);
  // The lock takes it.
  await page.click('#lock');
  assert.equal(await page.inputValue('#seed'), seed);
  await page.click('#lock');
  assert.equal(await page.inputValue('#seed'), '');
});

test('a full queue says how long to wait, and nothing is lost', async t => {
  const small = await Server.start({ args: ['--queue', '1'] });
  t.after(() => small.end());
  const page = await visit(t, small);
  const running = await send(page, PROMPT, LONG);
  await until(async () => (await small.job(running.id)).status === 'running');
  await send(page, PROMPT, LONG);
  const refused = 'a green circle shrinking on a brown background';
  await send(page, refused);
  assert.match(await page.textContent('#message'), /queue is full.*in about .*(second|minute)/i);
  assert.equal(await page.inputValue('#prompt'), refused);
  assert.equal((await small.jobs()).length, 2);
});
