// Starts the program's server in a folder of its own, and talks to it as any client would.

import { spawn, spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

/// The program under test.
export const PROGRAM = process.env.ANIMATELCM ?? '../../target/debug/animatelcm';

/// Runs the program to its end; fails if it fails.
export function run(...args) {
  const { status, stdout, stderr } = spawnSync(PROGRAM, args, { encoding: 'utf8' });
  if (status !== 0) throw new Error(`${args.join(' ')}: ${stderr}`);
  return stdout;
}

export function folder() {
  return mkdtempSync(join(tmpdir(), 'animatelcm-page-'));
}

/// A running server. `data` and `port` of an earlier one continue it.
export class Server {
  static async start({ args = [], data = folder(), port = 0, headers = {} } = {}) {
    const server = new Server();
    Object.assign(server, { args, data, headers });
    server.process = spawn(PROGRAM, ['serve', '--bind', `127.0.0.1:${port}`, '--data', data, ...args]);
    server.url = await new Promise((resolve, reject) => {
      let said = '';
      const hear = bytes => {
        said += bytes;
        const [address] = /http:\/\/127\.0\.0\.1:\d+/.exec(said) ?? [];
        if (address) resolve(`${address}/`);
      };
      server.process.stdout.on('data', hear);
      server.process.stderr.on('data', hear);
      server.process.on('error', reject);
      server.process.on('exit', code => reject(new Error(`the server ended with ${code}: ${said}`)));
      setTimeout(() => reject(new Error(`the server said no address: ${said}`)), 60_000).unref();
    });
    return server;
  }

  /// Ends the process without a warning.
  async kill() {
    const ended = new Promise(resolve => this.process.on('exit', resolve));
    this.process.kill('SIGKILL');
    await ended;
  }

  /// The same server again, after `kill`.
  restart() {
    const { args, data, headers } = this;
    return Server.start({ args, data, headers, port: new URL(this.url).port });
  }

  async end() {
    if (this.process.exitCode === null && this.process.signalCode === null) await this.kill();
    rmSync(this.data, { recursive: true, force: true });
  }

  async call(method, path, body, more = {}) {
    const headers = { ...this.headers, ...(body ? { 'Content-Type': 'application/json' } : {}), ...more };
    const answer = await fetch(`${this.url}v1/${path}`, { method, headers, body: body && JSON.stringify(body) });
    const text = await answer.text();
    if (!answer.ok) throw new Error(`${method} ${path}: ${answer.status} ${text}`);
    return text ? JSON.parse(text) : null;
  }

  /// Sends a request; settings are sections of a request.
  submit(text, { format = 'mp4', ...sections } = {}) {
    return this.call('POST', `jobs?format=${format}`, { schema: 'animatelcm/v1', prompt: { text }, ...sections });
  }

  job(id) {
    return this.call('GET', `jobs/${id}`);
  }

  async jobs(query = '') {
    const { data } = await this.call('GET', `jobs?limit=100${query}`);
    return data;
  }

  /// The record of a job once it has ended.
  async ended(id, limit = 120_000) {
    for (const until = Date.now() + limit; Date.now() < until; await pause(100)) {
      const record = await this.job(id);
      if (!['queued', 'running'].includes(record.status)) return record;
    }
    throw new Error(`${id} has not ended`);
  }

  /// The bytes of a finished clip.
  async content(id) {
    const answer = await fetch(`${this.url}v1/jobs/${id}/content`, { headers: this.headers });
    return Buffer.from(await answer.arrayBuffer());
  }
}

export const pause = milliseconds => new Promise(resolve => setTimeout(resolve, milliseconds));
