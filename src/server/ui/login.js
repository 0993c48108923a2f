// Servers with keys: a form for one, which the server exchanges for a cookie.

import { call, json, whenUnauthorized } from './api.js';
import { byId } from './dom.js';
import { explain } from './records.js';

/// Asks for a key whenever the server does. `asked` is called then, `entered` after a key was right, `left` after
/// logging out.
export function startLogin({ asked, entered, left }) {
  const ask = () => {
    asked();
    if (byId('login').open) return;
    byId('login').showModal();
    byId('key').focus();
  };
  whenUnauthorized(ask);
  byId('login').addEventListener('cancel', event => event.preventDefault());
  byId('login-form').addEventListener('submit', async event => {
    event.preventDefault();
    byId('login-error').textContent = '';
    const key = byId('key').value.trim();
    try {
      await call('POST', 'login', { body: JSON.stringify({ key }), headers: json });
    } catch (error) {
      byId('login-error').textContent = error.status === 401 ? 'This is not a key of the server.' : explain(error);
      byId('key').select();
      return;
    }
    byId('key').value = '';
    byId('login').close();
    await entered();
  });
  byId('logout').addEventListener('click', async () => {
    await call('DELETE', 'login').catch(() => {});
    left();
    ask();
  });
}
