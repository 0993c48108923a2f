// Requests to the server.

// Seeds have 64 bits, numbers of JavaScript 53: in this program seeds are texts.
export const parse = text => JSON.parse(text.replace(/(?<!\\)"seed"\s*:\s*(\d+)/g, '"seed":"$1"'));
export const stringify = value => JSON.stringify(value).replace(/(?<!\\)"seed":"(\d+)"/g, '"seed":$1');

/// A request that was not done, with what the server says of it.
export class Failure extends Error {
  constructor(message, more = {}) {
    super(message);
    Object.assign(this, more);
  }
}

export const address = path => new URL(`v1/${path}`, document.baseURI).href;
export const jobAddress = (id, rest = '') => address(`jobs/${id}${rest}`);

let onUnauthorized = () => {};
/// Sets what is called when the server asks for a key.
export function whenUnauthorized(does) {
  onUnauthorized = does;
}

/// The answer to a request; fails with a `Failure`.
export async function call(method, path, { body, headers } = {}) {
  let answer;
  try {
    answer = await fetch(address(path), { method, body, headers });
  } catch {
    throw new Failure('The server does not answer. Nothing is lost: try again.', { code: 'network' });
  }
  const text = await answer.text();
  let value = null;
  try {
    value = text ? parse(text) : null;
  } catch {
    /* a proxy's page: the status says enough */
  }
  if (answer.ok) return value;
  if (answer.status === 401) onUnauthorized();
  const { message, param, code, hint } = value?.error ?? {};
  const wait = Number(answer.headers.get('Retry-After')) || null;
  throw new Failure(message ?? `The server answered ${answer.status}.`, {
    status: answer.status,
    param,
    code,
    hint,
    wait,
  });
}

export const json = { 'Content-Type': 'application/json' };

/// A text that no other request has.
export function randomKey() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map(byte => byte.toString(16).padStart(2, '0')).join('');
}

/// Sends a file by itself, to be named in a request.
export async function upload(file) {
  const body = new FormData();
  body.append('file', file, file.name);
  return call('POST', 'uploads', { body });
}
