// Who can use the page, and how: keys, keyboard, screen readers, small windows, no network.

import assert from 'node:assert/strict';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { AxeBuilder } from '@axe-core/playwright';

import { close, send, stage, until, visit } from './browser.mjs';
import { Server, folder, run } from './server.mjs';

/// As many steps as LCM takes: of a job that is cancelled before it ends.
const ENDLESS = { steps: 100 };
const PROMPT = 'an orange square moving left on a black background';

let server;
before(async () => {
  server = await Server.start();
  await server.ended((await server.submit(PROMPT)).id);
  await server.ended((await server.submit(PROMPT, { sampling: { steps: 2 } })).id);
});
after(async () => {
  await close();
  await server.end();
});

/// What axe finds, in a few words.
async function violations(page) {
  const { violations } = await new AxeBuilder({ page }).analyze();
  return violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html.slice(0, 120)).join(' | ')}`);
}

test('from prompt to clip by keyboard alone', async t => {
  const page = await visit(t, server);
  await page.keyboard.press('Tab');
  for (let n = 0; (await page.evaluate(() => document.activeElement.id)) !== 'prompt'; n += 1) {
    assert.ok(n < 20, 'the prompt is not reached');
    await page.keyboard.press('Tab');
  }
  await page.keyboard.press('Control+a');
  await page.keyboard.type('a green ring shrinking on a white background');
  for (let n = 0; (await page.evaluate(() => document.activeElement.id)) !== 'make'; n += 1) {
    assert.ok(n < 40, 'the button is not reached');
    await page.keyboard.press('Tab');
  }
  await page.keyboard.press('Enter');
  const record = await until(async () =>
    (await server.jobs()).find(({ job }) => job.prompt.text.startsWith('a green ring')),
  );
  await page.waitForSelector(`${stage(record.id)} video`);
  await until(async () => (await page.textContent('#live')) === 'The clip is done.');
});

for (const colorScheme of ['light', 'dark']) {
  test(`axe finds nothing: ${colorScheme}`, async t => {
    const page = await visit(t, server, { colorScheme });
    await page.click('summary');
    assert.deepEqual(await violations(page), []);
    await send(page, PROMPT, ENDLESS);
    await send(page, PROMPT, { steps: 1 });
    await page.waitForSelector('#waiting li');
    await page.fill('#frames', '0');
    await page.click('#make');
    assert.deepEqual(await violations(page), []);
    await page.click('#waiting li button');
    await page.click('#stage button:text("Cancel")');
    await page.waitForSelector('#stage .ending:has-text("cancelled")');
    await page.click('#tiles button');
    await page.waitForSelector('#viewer[open]');
    assert.deepEqual(await violations(page), []);
    await page.click('#viewer button:text("Delete")');
    assert.deepEqual(await violations(page), []);
  });
}

for (const width of [320, 768, 1440]) {
  test(`nothing is wider than a window of ${width} pixels`, async t => {
    const page = await visit(t, server, { viewport: { width, height: 800 } });
    const isFine = () => page.evaluate(() => document.documentElement.scrollWidth <= innerWidth);
    await page.click('summary');
    assert.ok(await isFine());
    await send(page, `${PROMPT}, ${'wideword'.repeat(30)}`, ENDLESS);
    const { id } = await send(page, `${'x'.repeat(300)} (red:1.2)`, { steps: 1 });
    await page.waitForSelector('#waiting li');
    assert.ok(await isFine());
    await page.click('#stage button:text("Cancel")');
    await server.ended(id);
    await page.click('#tiles button');
    assert.ok(await page.locator('#viewer').evaluate(element => element.scrollWidth <= element.clientWidth));
    assert.ok(await isFine());
  });
}

test('with less motion nothing moves by itself', async t => {
  const page = await visit(t, server, { reducedMotion: 'reduce' });
  const { id } = await send(page, PROMPT, { steps: 4 });
  const video = page.locator(`${stage(id)} video`);
  await video.waitFor();
  assert.deepEqual(await video.evaluate(({ paused, autoplay, controls }) => ({ paused, autoplay, controls })), {
    paused: true,
    autoplay: false,
    controls: true,
  });
});

test('colours follow the system', async t => {
  const grounds = new Set();
  for (const colorScheme of ['light', 'dark']) {
    const page = await visit(t, server, { colorScheme });
    grounds.add(await page.evaluate(() => getComputedStyle(document.body).backgroundColor));
  }
  assert.equal(grounds.size, 2);
});

test('texts of users are never read as HTML', async t => {
  const page = await visit(t, server);
  const text = '<img src=x onerror="document.title=1"> <b>star</b>';
  const { id } = await send(page, text, { steps: 1 });
  await page.waitForSelector(`${stage(id)} video`);
  assert.equal(await page.textContent(`${stage(id)} .prompt`), text);
  assert.equal(await page.locator(`${stage(id)} b`).count(), 0);
});

test('without a network the page says so, and goes on when it is back', async t => {
  const page = await visit(t, server);
  await page.context().setOffline(true);
  await page.fill('#prompt', PROMPT);
  await page.click('#make');
  await page.waitForSelector('#message.fault:has-text("does not answer")');
  assert.equal(await page.inputValue('#prompt'), PROMPT);
  await page.context().setOffline(false);
  const { id } = await send(page, PROMPT);
  await page.waitForSelector(`${stage(id)} video`);
});

test('a server with keys asks for one', async t => {
  const data = folder();
  const file = join(data, 'keys.toml');
  const key = run('keys', 'new', 'page', '--file', file).trim().split(/\s+/).at(-1);
  const locked = await Server.start({ data, args: ['--api-keys', file], headers: { Authorization: `Bearer ${key}` } });
  t.after(() => locked.end());
  const page = await visit(t, locked, { ready: false });
  await page.waitForSelector('#login[open]');
  assert.deepEqual(await violations(page), []);
  await page.fill('#key', 'not a key');
  await page.keyboard.press('Enter');
  await page.waitForSelector('#login-error:has-text("not a key")');
  await page.fill('#key', key);
  await page.keyboard.press('Enter');
  await page.waitForSelector('#right[data-state=ready]');
  const { id } = await send(page, PROMPT);
  const video = page.locator(`${stage(id)} video`);
  await video.waitFor();
  await until(() => video.evaluate(({ currentTime }) => currentTime > 0));
  await page.reload();
  await page.waitForSelector(`${stage(id)} video`);
  await page.click('#logout');
  await page.waitForSelector('#login[open]');
  assert.equal(await page.locator('#stage video').count(), 0);
});
