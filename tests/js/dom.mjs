// A page for the frameworks' tests, and a client of presence whose watches are counted.

import assert from 'node:assert/strict';

import { Window } from 'happy-dom';
import { io } from 'socket.io-client';

import { PresenceClient } from '../../static/presence-client.js';
import { eventually, transports } from './client.mjs';

const { GATEWAY_URL } = process.env;
const LONG = 15_000; // milliseconds: who is not shown any more may be shown again for two seconds
const clients = new Set();

/** Makes the globals that react-dom and Vue look for. To be called before they are imported. */
export function makePage() {
  const window = new Window({ url: `${GATEWAY_URL}/` });
  globalThis.window = window;
  for (const name of ['document', 'navigator', 'Element', 'HTMLElement', 'HTMLIFrameElement', 'SVGElement', 'Node', 'Event']) {
    Object.defineProperty(globalThis, name, { value: window[name], configurable: true }); // Node has a navigator of its own
  }
}

/** Waits until a page says just this; its failure says what it says instead. */
export async function says(shown, text) {
  await eventually(() => shown.text() === text, text, LONG).catch(() => assert.equal(shown.text(), text));
}

/** Waits until the gateway has been asked for something about a user once. */
export function isTold(sent, event, userId) {
  return eventually(() => asked(sent, event, userId) === 1, `${event} of ${userId}`, LONG);
}

/**
 * A client of a user of a tenant. `held` has how many times each user is watched by the page, and "state" is listened
 * to; `sent` has all that went to the gateway, as [event, payload].
 */
export function presence(site, user, { connect = true } = {}) {
  const sent = [];
  const client = new PresenceClient({
    url: GATEWAY_URL,
    share: false,
    getToken: () => site.token(user),
    io: (url, options) => io(url, { ...options, transports }).onAnyOutgoing((...said) => sent.push(said)),
  });
  const held = new Map();
  for (const name of ['watch', 'on']) {
    const method = client[name].bind(client);
    client[name] = (of, listener) => {
      held.set(of, (held.get(of) ?? 0) + 1);
      const end = method(of, listener);
      let ended = false;
      return () => {
        if (!ended) held.set(of, held.get(of) - 1);
        ended = true;
        end();
      };
    };
  }
  if (connect) client.connect();
  clients.add(client);
  return { client, held, sent };
}

/** How many times a request named a user. */
export function asked(sent, event, userId) {
  return sent.filter(([name, payload]) => name === event && payload?.userIds?.includes(userId)).length;
}

export function closePresence() {
  for (const client of clients) client.close();
  clients.clear();
}
