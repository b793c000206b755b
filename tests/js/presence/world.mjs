// What the client's units are tried in: a server, locks and channels that do what a test says, and only then.

import { vi } from 'vitest';

import { PresenceClient } from '../../../static/presence-client.js';

const base64 = (value) => Buffer.from(JSON.stringify(value)).toString('base64url');

let tokens = 0;

/** A JWT that nobody has signed: `ttl` in seconds. */
export function makeToken(sub = 'me', { ttl = 3600, ...claims } = {}) {
  const now = Math.floor(Date.now() / 1000);
  return `${base64({})}.${base64({ sub, iat: now, exp: now + ttl, jti: (tokens += 1), ...claims })}.`;
}

export const statusOf = (userId, version = 1, more = {}) => ({
  userId, online: true, status: 'online', statusText: null, lastActive: 't', connectedAt: 't', version, ...more,
});

/** Let everything happen that needs no time, or that needs this many milliseconds. */
export const settle = (ms = 0) => vi.advanceTimersByTimeAsync(ms);

/** One server, and every connection to it, as socket.io-client shows it. */
export class Server {
  sockets = [];
  requests = []; // [event, payload]
  users = new Map();
  refuse = null; // what connections are refused with
  mute = false; // whether it answers nothing
  answers = {}; // what certain requests are answered with, by event: a function of the payload
  limit = Infinity;
  behind = () => {}; // called with the event of each request, right behind its answer
  recovers = false;

  io = (url, options) => {
    const socket = new Socket(this, url, options);
    this.sockets.push(socket);
    socket.connect();
    return socket;
  };

  get live() {
    return this.sockets.filter((socket) => socket.connected);
  }

  get socket() {
    return this.sockets.at(-1);
  }

  asked(event) {
    return this.requests.filter(([name]) => name === event).map(([, payload]) => payload);
  }

  answer(socket, event, payload) {
    this.requests.push([event, payload]);
    if (this.answers[event]) return this.answers[event](payload);
    if (event === 'watch-users') {
      const watched = new Set([...socket.watched, ...payload.userIds]);
      if (watched.size > this.limit) return { event: 'error', error: { code: 'INVALID_PAYLOAD', message: 'too many' } };
      socket.watched = watched;
      const unseen = { online: false, status: 'offline', lastActive: null, connectedAt: null };
      const statuses = payload.userIds.map((userId) => this.users.get(userId) ?? statusOf(userId, 0, unseen));
      return { event: 'watching', data: { statuses } };
    }
    if (event === 'unwatch-users') for (const userId of payload.userIds) socket.watched.delete(userId);
    return { event: 'done', data: {} };
  }

  /** A change of a user, told to those who watch. */
  change(userId, version, more = {}) {
    this.users.set(userId, statusOf(userId, version, more));
    this.tell('user-status-changed', this.users.get(userId));
  }

  tell(event, payload) {
    for (const socket of this.live) if (socket.watched.has(payload.userId)) socket.hear(event, payload);
  }
}

class Socket {
  connected = false;
  recovered = false;
  active = true;
  goodbye = false;
  watched = new Set();
  tokens = [];
  #handlers = new Map();
  #pending = new Set();

  constructor(server, url, options) {
    Object.assign(this, { server, url, options });
    this.reconnects = true;
    this.io = { reconnection: (value) => { this.reconnects = value; }, engine: { close: () => this.lose() } };
  }

  on(event, handler) {
    this.#handlers.set(event, handler);
  }

  off() {
    this.#handlers.clear();
  }

  hear(event, ...payload) {
    this.#handlers.get(event)?.(...payload);
  }

  connect() {
    this.active = true;
    setTimeout(() => this.options.auth(({ token }) => this.#arrive(token)), 1);
  }

  #arrive(token) {
    this.tokens.push(token);
    const refusal = typeof this.server.refuse === 'function' ? this.server.refuse(token) : this.server.refuse;
    if (!this.active) return;
    if (refusal) {
      this.active = false;
      this.hear('connect_error', { message: 'refused', data: refusal });
      return;
    }
    this.connected = true;
    this.recovered = this.server.recovers && this.tokens.length > 1;
    if (!this.recovered) this.watched = new Set();
    this.hear('connect');
  }

  disconnect() {
    this.goodbye ||= this.connected;
    this.active = this.connected = false;
  }

  /** The connection is lost; it comes back by itself, if it may. */
  lose({ back = true, reason = 'transport close' } = {}) {
    if (!this.connected) return;
    this.connected = false;
    this.active = reason !== 'io server disconnect';
    this.hear('disconnect', reason);
    for (const fail of [...this.#pending]) fail(new Error('lost'));
    if (back && this.active && this.reconnects) this.connect();
  }

  timeout(ms) {
    return {
      emit: (event, ...rest) => {
        const answered = rest.pop();
        const [payload] = rest;
        const fail = (error) => { if (this.#pending.delete(fail)) answered(error); };
        this.#pending.add(fail);
        setTimeout(() => fail(new Error('timed out')), ms);
        if (this.server.mute) {
          this.server.requests.push([event, payload]);
          return;
        }
        const answer = this.server.answer(this, event, payload);
        setTimeout(() => {
          if (!this.#pending.delete(fail)) return;
          answered(null, answer);
          this.server.behind(event); // what came with it
        }, 1);
      },
    };
  }
}

/** The locks of one browser, and the tabs that hold them. */
class Locks {
  held = new Map(); // name -> [{mode, reject}]
  waiting = []; // {name, mode, grant, reject}

  request(name, ...rest) {
    const callback = rest.pop();
    const { mode = 'exclusive', signal, steal = false } = rest[0] ?? {};
    return new Promise((resolve, reject) => {
      const request = { name, mode, reject };
      request.grant = () => {
        this.held.set(name, [...(this.held.get(name) ?? []), request]);
        Promise.resolve().then(callback).finally(() => this.release(name, request)).then(resolve, reject);
      };
      if (steal) {
        for (const other of this.held.get(name) ?? []) other.reject(new Error('AbortError'));
        this.held.delete(name);
        request.grant();
        return;
      }
      signal?.addEventListener('abort', () => {
        if (!this.waiting.includes(request)) return;
        this.waiting.splice(this.waiting.indexOf(request), 1);
        reject(new Error('AbortError'));
      });
      this.waiting.push(request);
      this.next();
    });
  }

  release(name, request) {
    const holders = (this.held.get(name) ?? []).filter((holder) => holder !== request);
    if (holders.length) this.held.set(name, holders);
    else this.held.delete(name);
    this.next();
  }

  next() {
    for (const request of [...this.waiting]) {
      const holders = this.held.get(request.name) ?? [];
      if (holders.length && !(request.mode === 'shared' && holders.every((holder) => holder.mode === 'shared'))) continue;
      this.waiting.splice(this.waiting.indexOf(request), 1);
      request.grant();
    }
  }
}

const channels = new Set();

class Channel {
  onmessage = null;
  asleep = false;
  id = null; // of the tab that has it
  #queue = [];

  constructor(name) {
    this.name = name;
    channels.add(this);
  }

  postMessage(message) {
    this.id = message.from;
    if (this.asleep) return;
    for (const other of channels) {
      if (other !== this && other.name === this.name) queueMicrotask(() => other.take(structuredClone(message)));
    }
  }

  take(data) {
    if (this.asleep) this.#queue.push(data);
    else this.onmessage?.({ data });
  }

  wake() {
    this.asleep = false;
    for (const data of this.#queue.splice(0)) this.onmessage?.({ data });
  }

  close() {
    channels.delete(this);
  }
}

/** A document whose page is looked at, or not. */
class Page extends EventTarget {
  visibilityState = 'visible';

  show(visible) {
    this.visibilityState = visible ? 'visible' : 'hidden';
    this.dispatchEvent(new Event('visibilitychange'));
  }
}

/** Everything anew, with a clock that stands still. */
export function makeWorld({ sharing = false } = {}) {
  vi.useFakeTimers();
  channels.clear();
  const world = { server: new Server(), locks: new Locks(), document: new Page(), window: new EventTarget(), clients: [] };
  vi.stubGlobal('document', world.document);
  vi.stubGlobal('window', world.window);
  vi.stubGlobal('navigator', sharing ? { locks: world.locks } : {});
  vi.stubGlobal('BroadcastChannel', Channel);
  world.open = (options = {}) => {
    const presence = new PresenceClient({ url: 'http://gateway', io: world.server.io, getToken: () => makeToken(), ...options });
    presence.errors = [];
    presence.states = [];
    presence.changes = [];
    presence.on('error', (error) => presence.errors.push(error.code));
    presence.on('state', (state) => presence.states.push(state));
    presence.on('change', (status) => presence.changes.push([status.userId, status.version]));
    presence.connect();
    world.clients.push(presence);
    return presence;
  };
  world.channels = channels;
  /** A tab that is gone says and hears nothing. */
  world.silence = (channel) => {
    channel.asleep = true;
    channels.delete(channel);
  };
  /** The tab that leads is gone, without a word. */
  world.crashLeader = () => {
    const [name] = [...world.locks.held.keys()].filter((key) => !key.includes(' tab '));
    const [leader] = world.leaders.slice(-1);
    const socket = world.server.live[0];
    socket.off();
    socket.reconnects = false;
    socket.lose();
    world.silence([...channels].find((channel) => channel.id === leader));
    for (const lock of [`${name} tab ${leader}`, name]) {
      const [holder] = world.locks.held.get(lock);
      world.locks.release(lock, holder);
    }
  };
  world.leaders = [];
  world.early = []; // what tabs said of whom nobody could know when they end
  const post = Channel.prototype.postMessage;
  vi.spyOn(Channel.prototype, 'postMessage').mockImplementation(function postMessage(message) {
    if (message.type === 'lead' && message.to === undefined) world.leaders.push(message.from);
    if (!this.asleep && !world.locks.held.has(`${this.name} tab ${message.from}`)) world.early.push(message);
    post.call(this, message);
  });
  world.end = () => {
    for (const client of world.clients) client.close();
    vi.restoreAllMocks();
    vi.unstubAllGlobals();
    vi.useRealTimers();
  };
  return world;
}
