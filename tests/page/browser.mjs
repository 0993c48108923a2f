// Chromium, and what the tests do on the page.

import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { chromium } from 'playwright-core';

const INSTALLED = process.env.CHROMIUM ?? '/usr/bin/chromium';

let browser;
export async function open() {
  const executablePath = existsSync(INSTALLED) ? INSTALLED : undefined;
  browser ??= await chromium.launch({ executablePath, args: ['--no-sandbox'] });
  return browser;
}

export async function close() {
  await browser?.close();
  browser = undefined;
}

/// A window of its own on the page. Errors of scripts and requests to other places fail the test at its end.
export async function visit(t, server, { context, ready = true, ...options } = {}) {
  const made = context ?? (await (await open()).newContext({ viewport: { width: 1280, height: 900 }, ...options }));
  const page = await made.newPage();
  page.errors = [];
  page.foreign = [];
  page.on('pageerror', error => page.errors.push(error.message));
  page.on('console', message => {
    // What the network does is not the page's error.
    const isNetwork = message.text().startsWith('Failed to load resource') || message.text().includes('net::ERR_');
    if (message.type() === 'error' && !isNetwork) page.errors.push(message.text());
  });
  page.on('request', request => {
    if (!request.url().startsWith(server.url) && !request.url().startsWith('blob:')) page.foreign.push(request.url());
  });
  t.after(async () => {
    await (context ? page.close() : made.close());
    assert.deepEqual(page.errors, []);
    assert.deepEqual(page.foreign, []);
  });
  await page.goto(server.url);
  if (ready) await page.waitForSelector('#right[data-state=ready]');
  return page;
}

/// Fills the prompt and sends the form.
export async function send(page, prompt, fields = {}) {
  await page.fill('#prompt', prompt);
  for (const [id, value] of Object.entries(fields)) await page.fill(`#${id}`, String(value));
  const answer = page.waitForResponse(
    response => response.request().method() === 'POST' && response.url().includes('/v1/jobs?'),
  );
  await page.focus('#prompt');
  await page.keyboard.press('Control+Enter');
  return (await answer).json();
}

export const stage = id => `#stage [data-job="${id}"]`;
export const tile = id => `#tiles [data-job="${id}"]`;

/// A file as dragging and the clipboard carry it.
function transfer(page, bytes, name, type) {
  return page.evaluateHandle(
    ([text, name, type]) => {
      const transfer = new DataTransfer();
      transfer.items.add(new File([Uint8Array.from(atob(text), c => c.charCodeAt(0))], name, { type }));
      return transfer;
    },
    [Buffer.from(bytes).toString('base64'), name, type],
  );
}

/// Drops a file on an element, as a hand would.
export async function drop(page, target, bytes, name, type) {
  const data = await transfer(page, bytes, name, type);
  for (const event of ['dragenter', 'dragover', 'drop'])
    await page.dispatchEvent(target, event, { dataTransfer: data });
}

/// Pastes a file into an element.
export async function paste(page, target, bytes, name, type) {
  const data = await transfer(page, bytes, name, type);
  await page.locator(target).evaluate((element, clipboardData) => {
    element.dispatchEvent(new ClipboardEvent('paste', { clipboardData, bubbles: true, cancelable: true }));
  }, data);
}

/// Waits until the function, which runs here, is true.
export async function until(test, limit = 60_000) {
  for (const end = Date.now() + limit; Date.now() < end;) {
    const found = await test();
    if (found) return found;
    await new Promise(resolve => setTimeout(resolve, 50));
  }
  assert.fail(`not within ${limit} ms: ${test}`);
}
