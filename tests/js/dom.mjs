// A page for the frameworks' tests, and a client of presence whose watches are counted.

import { Window } from 'happy-dom';
import { io } from 'socket.io-client';

import { PresenceClient } from '../../static/presence-client.js';
import { transports } from './client.mjs';

const { GATEWAY_URL } = process.env;
const clients = new Set();

/** Makes the globals that react-dom and Vue look for. To be called before they are imported. */
export function makePage() {
  const window = new Window({ url: `${GATEWAY_URL}/` });
  globalThis.window = window;
  for (const name of ['document', 'navigator', 'Element', 'HTMLElement', 'HTMLIFrameElement', 'SVGElement', 'Node', 'Event']) {
    Object.defineProperty(globalThis, name, { value: window[name], configurable: true }); // Node has a navigator of its own
  }
}

/**
 * A client of a user of a tenant. `held` has how many times each user is watched by the page, and `sent` has all that
 * went to the gateway, as [event, payload].
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
  const watch = client.watch.bind(client);
  client.watch = (userId, listener) => {
    held.set(userId, (held.get(userId) ?? 0) + 1);
    const unwatch = watch(userId, listener);
    let watching = true;
    return () => {
      if (watching) held.set(userId, held.get(userId) - 1);
      watching = false;
      unwatch();
    };
  };
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
