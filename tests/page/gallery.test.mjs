// The gallery and its viewer.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { after, before, test } from 'node:test';

import { close, stage, tile, until, visit } from './browser.mjs';
import { Server } from './server.mjs';

const COUNT = 34;
const SMALL = { size: { width: 16, height: 16, frames: 2 }, sampling: { steps: 1 } };

let server, ids;
before(async () => {
  server = await Server.start({ args: ['--queue', '64'] });
  const records = [];
  for (let n = 0; n < COUNT; n += 1) {
    const format = n === COUNT - 2 ? 'gif' : 'mp4';
    records.push(await server.submit('a red circle growing on a white background', { ...SMALL, format }));
  }
  ids = records.map(({ id }) => id).reverse();
  for (const id of ids) assert.equal((await server.ended(id)).status, 'completed');
});
after(async () => {
  await close();
  await server.end();
});

const tiles = page => page.locator('#tiles > li').evaluateAll(items => items.map(({ dataset }) => dataset.job));

test('clips stand in pages, the newest first', async t => {
  const page = await visit(t, server);
  await page.waitForSelector(stage(ids[0]));
  assert.deepEqual(await tiles(page), ids.slice(1, 30));
  await page.click('#older');
  await until(async () => (await tiles(page)).length === COUNT - 1);
  assert.deepEqual(await tiles(page), ids.slice(1));
  assert.ok(await page.locator('#older').isHidden());
});

test('arrows walk the viewer, Escape closes it', async t => {
  const page = await visit(t, server);
  await page.click(`${tile(ids[1])} button`);
  const seen = () => page.locator('#viewer-place').textContent();
  assert.match(await seen(), /^2 of/);
  await page.keyboard.press('ArrowRight');
  assert.match(await seen(), /^3 of/);
  await page.keyboard.press('ArrowLeft');
  await page.keyboard.press('ArrowLeft');
  assert.match(await seen(), /^1 of/);
  await page.keyboard.press('ArrowLeft');
  assert.match(await seen(), /^1 of/);
  // Older pages are asked for on the way.
  for (let n = 1; n < 31; n += 1) {
    await page.keyboard.press('ArrowRight');
    await until(async () => (await seen()).startsWith(`${n + 1} of`), 5000);
  }
  await page.keyboard.press('Escape');
  assert.ok(await page.locator('#viewer').isHidden());
});

test('downloads have the right name and type', async t => {
  const page = await visit(t, server);
  for (const [id, ending, magic] of [
    [ids[1], 'gif', 'GIF89a'],
    [ids[2], 'mp4', 'ftyp'],
  ]) {
    await page.click(`${tile(id)} button`);
    const download = page.waitForEvent('download');
    await page.click('#viewer a:text("Download")');
    const file = await download;
    assert.match(file.suggestedFilename(), new RegExp(`\\.${ending}$`));
    assert.ok(
      readFileSync(await file.path())
        .subarray(0, 12)
        .includes(magic),
    );
    await page.keyboard.press('Escape');
  }
});

test('deleting asks, and the clip is gone in the other tab too', async t => {
  const page = await visit(t, server);
  const second = await visit(t, server, { context: page.context() });
  const id = ids[3];
  await page.click(`${tile(id)} button`);
  await page.click('#viewer button:text("Delete")');
  await page.click('#confirm-no');
  await server.job(id);
  await page.click('#viewer button:text("Delete")');
  await page.click('#confirm-yes');
  for (const tab of [page, second]) await tab.waitForSelector(tile(id), { state: 'detached' });
  await assert.rejects(server.job(id), /404/);
});
