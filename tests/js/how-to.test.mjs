// A page of docs/how-to, with its code as it stands there: who comes and goes is shown. Run by test_js_how_to.py, which
// writes it to PAGE; bob comes by a client of the same modules.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { pathToFileURL } from 'node:url';

import { eventually } from './client.mjs';
import { makePage } from './dom.mjs';

const { GATEWAY_URL, PAGE } = process.env;
const page = pathToFileURL(PAGE);

test('the page shows who comes, what they say, and that they go', { timeout: 50000 }, async () => {
  const { PresenceClient } = await import(new URL('presence/presence-client.js', page));
  const clients = new Set();
  const { connect } = PresenceClient.prototype;
  PresenceClient.prototype.connect = function remember() {
    clients.add(this); // the page itself has no end
    connect.call(this);
  };
  makePage();
  document.body.innerHTML = '<div id="root"></div><div id="app"></div>';
  await import(page);
  const says = (text) => eventually(() => document.body.textContent.replaceAll(/\s+/g, ' ').includes(text), `the page says ${text}`, 15_000);
  const isSaid = (id, text) => says(`${id}: ${text}`);
  await isSaid('alice', 'online');
  await isSaid('bob', 'offline');
  const getToken = async () => (await (await fetch(`${GATEWAY_URL}/dev/token?user=bob`)).json()).token;
  const bob = new PresenceClient({ url: GATEWAY_URL, getToken, share: false });
  bob.connect();
  await isSaid('bob', 'online');
  await bob.setStatus('busy', { text: 'writing' });
  await isSaid('bob', 'writing');
  bob.close();
  await isSaid('bob', 'offline');
  assert.ok(document.body.textContent.includes('alice: online'));
  assert.equal(clients.size, 2);
  for (const client of clients) client.close();
});
