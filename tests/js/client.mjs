// The real client, keeping what it hears; tokens as an application's backend would sign them.

import assert from 'node:assert/strict';
import { createHmac, randomUUID } from 'node:crypto';

import { io } from 'socket.io-client';

const { GATEWAY_URL, JWT_SECRET, SERVICE_API_KEY, TRANSPORTS } = process.env;
export const transports = TRANSPORTS.split(',');

const STEP = 5000; // milliseconds that anything may take on a busy machine
const opened = new Set();

export function sign(claims) {
  const encode = (value) => Buffer.from(JSON.stringify(value)).toString('base64url');
  const body = `${encode({ alg: 'HS256', typ: 'JWT' })}.${encode({ exp: Math.floor(Date.now() / 1000) + 3600, ...claims })}`;
  return `${body}.${createHmac('sha256', JWT_SECRET).update(body).digest('base64url')}`;
}

/** Waits until `condition()` is truthy, and returns what it returned. */
export async function eventually(condition, what = condition, within = STEP) {
  const deadline = Date.now() + within;
  for (;;) {
    const result = condition();
    if (result) return result;
    assert.ok(Date.now() < deadline, `not within ${within} ms: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

/** One client with everything it heard, as [event, payload]. */
class Client {
  constructor(options) {
    this.heard = [];
    this.socket = io(`${GATEWAY_URL}/ws/messages`, {
      forceNew: true, transports, reconnectionDelay: 20, reconnectionDelayMax: 20, ...options,
    });
    opened.add(this.socket);
    this.socket.onAny((event, payload) => this.heard.push([event, payload]));
    for (const event of ['connect_error', 'disconnect']) {
      this.socket.on(event, (cause) => this.heard.push([event, cause]));
    }
  }

  payloads(event) {
    return this.heard.filter(([name]) => name === event).map(([, payload]) => payload);
  }

  /** The names of the presence events heard about one user, in order. */
  about(user) {
    return this.heard.filter(([event, payload]) => event.startsWith('user-') && payload.userId === user).map(([event]) => event);
  }

  /** The n-th payload of an event, as soon as it was heard. */
  next(event, n = 1) {
    return eventually(() => this.payloads(event)[n - 1], `${event} number ${n}`);
  }

  ask(event, ...payload) {
    return this.socket.timeout(STEP).emitWithAck(event, ...payload);
  }

  /** Loses the connection, as socket.io-client's manual says to try it: it goes on by itself. */
  lose() {
    this.socket.io.engine.close();
  }
}

/** Starts a client with options of socket.io-client's; it may be refused. */
export function start(options) {
  return new Client(options);
}

/** Users of a tenant that nobody else is in. */
export function tenant() {
  const name = randomUUID();
  return {
    name,
    token: (user, claims) => sign({ sub: user, tenant: name, ...claims }),
    /** Connects a user; settled on the transport it ends up with. */
    async connect(user, claims, options) {
      const client = start({ auth: { token: this.token(user, claims) }, ...options });
      await client.next('connected');
      const settled = transports.at(-1);
      await eventually(() => client.socket.io.engine.transport.name === settled, `transport ${settled}`);
      return client;
    },
  };
}

/** Calls the HTTP API as a backend. */
export async function backend(method, path, body) {
  const response = await fetch(GATEWAY_URL + path, {
    method,
    headers: { 'X-API-Key': SERVICE_API_KEY, 'Content-Type': 'application/json' },
    body: body && JSON.stringify(body),
    signal: AbortSignal.timeout(STEP),
  });
  assert.ok(response.ok, `${method} ${path}: ${response.status}`);
  return response.json();
}

export function closeAll() {
  for (const socket of opened) socket.disconnect();
  opened.clear();
}
