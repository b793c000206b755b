/*
 * Presence gateway: the client for browsers. An ES module; its types and their documentation are in presence-client.d.ts.
 *
 *   import { PresenceClient } from './presence-client.js';
 *   const presence = new PresenceClient({ getToken: async () => (await fetch('/presence-token')).text() });
 *   presence.connect();
 *   const unwatch = presence.watch('bob', (status) => console.log(status.status));
 */

import { Connection } from './presence-connection.js';
import { Tabs, canShare } from './presence-tabs.js';
import { PresenceError, Tokens, subjectOf } from './presence-token.js';

export { PresenceError };

const TICK = 5000; // milliseconds
const LONGEST_ASK = 20_000; // milliseconds that a request waits for a connection and its answer
const FIRST_RETRY = 1000;
const LONGEST_RETRY = 30_000;
const FIELDS = ['userId', 'online', 'status', 'statusText', 'lastActive', 'connectedAt', 'version', 'invisible'];

/** Where the page has socket.io-client: as a script, or by its import map. */
async function findClient() {
  if (globalThis.io) return globalThis.io;
  try {
    return (await import('socket.io-client')).io;
  } catch {
    throw new PresenceError('NO_CLIENT', 'there is no socket.io-client: pass it as `io`, or name it in an import map');
  }
}

function checkId(userId) {
  if (typeof userId !== 'string' || !/^[^\u0000-\u001f\u007f-\u009f\ud800-\udfff]{1,128}$/u.test(userId)) {
    throw new TypeError('a user id is a string of 1 to 128 characters without control characters');
  }
}

export class PresenceClient {
  #options;
  #share;
  #state = 'closed';
  #link = null; // a Connection, or Tabs in place of one
  #run = null; // an object per start: work that was begun before sees that it has changed, and stops
  #been = false; // whether it has been connected since connect()
  #statuses = new Map();
  #watches = new Map(); // userId -> how many watch
  #listeners = new Map(); // userId -> Set of {listener}
  #handlers = { change: new Set(), state: new Set(), error: new Set() };
  #asks = new Map(); // id -> {event, payload, resolve, reject, timer}
  #lastAsk = 0;
  #flushing = false;
  #ticking = 0;
  #beatAt = 0;
  #retrying = 0;

  constructor({ url = globalThis.location?.origin, path = '/socket.io/', io, getToken, share = true, heartbeat = 25 } = {}) {
    if (typeof getToken !== 'function') throw new TypeError('PresenceClient takes getToken: a function that returns a token');
    if (!/^https?:\/\//.test(url ?? '')) throw new TypeError('PresenceClient takes url: where the gateway is, as https://…');
    if (!(heartbeat > 0)) throw new TypeError('PresenceClient takes heartbeat: seconds');
    this.#options = { url: url.replace(/\/+$/, ''), path, io, tokens: new Tokens(getToken), heartbeat: heartbeat * 1000 };
    this.#share = share;
  }

  get state() {
    return this.#state;
  }

  connect() {
    if (this.#run) return;
    this.#been = false;
    this.#setState('connecting');
    if (!this.#ticking) {
      this.#ticking = setInterval(() => this.#tick(), Math.min(TICK, this.#options.heartbeat));
      for (const [target, type, handler] of this.#pageEvents()) target?.addEventListener?.(type, handler);
    }
    this.#start();
  }

  close() {
    this.#stop(true);
    this.#sleep();
    this.#setState('closed');
    this.#refuse('CLOSED', 'the client was closed');
  }

  get(userId) {
    return this.#statuses.get(userId);
  }

  watch(userIds, listener) {
    const ids = [userIds].flat();
    ids.forEach(checkId);
    const entry = listener && { listener }; // the same function may listen twice
    for (const userId of ids) {
      this.#watches.set(userId, (this.#watches.get(userId) ?? 0) + 1);
      if (entry) this.#listeners.set(userId, (this.#listeners.get(userId) ?? new Set()).add(entry));
    }
    this.#flushSoon();
    let watching = true;
    return () => {
      if (!watching) return;
      watching = false;
      for (const userId of ids) this.#unwatch(userId, entry);
      this.#flushSoon();
    };
  }

  async setStatus(status, { text, expiresIn } = {}) {
    await this.#ask('set-status', { status, statusText: text ?? null, expiresIn: expiresIn ?? null });
  }

  async whoIsOnline({ limit, cursor } = {}) {
    const { users, count, nextCursor } = await this.#ask('get-online-users', { limit, cursor });
    return { users, count, nextCursor };
  }

  on(event, listener) {
    if (!Object.hasOwn(this.#handlers, event)) throw new TypeError('there are "change", "state" and "error"');
    const entry = { listener };
    this.#handlers[event].add(entry);
    return () => { this.#handlers[event].delete(entry); };
  }

  // The connection

  async #start(failures = 0) {
    const run = (this.#run = {});
    const { tokens, url, path } = this.#options;
    let token;
    try {
      token = await tokens.current();
      this.#options.io ??= await findClient();
    } catch (error) {
      if (run !== this.#run) return;
      const known = error instanceof PresenceError;
      this.#error(known ? error : new PresenceError('TOKEN_MISSING', `getToken failed: ${error?.message ?? error}`));
      if (known) {
        this.#giveUp();
      } else {
        const delay = Math.min(FIRST_RETRY * 2 ** failures, LONGEST_RETRY);
        this.#retrying = setTimeout(() => this.#start(failures + 1), delay);
      }
      return;
    }
    if (run !== this.#run) return;
    if (!token) {
      this.#error(new PresenceError('TOKEN_MISSING', 'getToken gives no token'));
      this.#giveUp();
      return;
    }
    const open = (tell) => new Connection(this.#options, tell);
    const subject = subjectOf(token);
    const shared = this.#share && subject !== null && canShare();
    this.#link = shared ? new Tabs(`presence ${url}${path} ${subject}`, open, this.#told(run)) : open(this.#told(run));
    this.#link.open();
    this.#update();
  }

  /** What a link tells, for as long as it is this client's. */
  #told(run) {
    const mine = (handle) => (...told) => { if (run === this.#run) handle(...told); };
    return {
      statuses: mine((statuses) => statuses.forEach((status) => this.#apply(status))),
      state: mine((state) => this.#onState(state)),
      error: mine((error) => this.#error(error)),
      answered: mine((id, answer) => this.#answered(id, answer)),
      stranger: mine(() => this.#restart()),
    };
  }

  #onState(state) {
    if (state === 'refused') {
      this.#giveUp();
      return;
    }
    if (state === 'connected') this.#been = true;
    const changed = state !== this.#state;
    this.#setState(state === 'connecting' && this.#been ? 'reconnecting' : state);
    if (!changed || state !== 'connected') return;
    for (const [id, { event, payload }] of this.#asks) this.#link?.ask(id, event, payload);
  }

  /** No token that is taken is to be had: until connect() is called. */
  #giveUp() {
    this.#stop(false);
    this.#sleep();
    this.#options.tokens.spend();
    this.#setState('refused');
    this.#refuse('REFUSED', 'the token was refused, and getToken gives no better');
  }

  /** The token is another user's: nothing of what the last one saw is theirs to see. */
  #restart() {
    this.#stop(true);
    this.#statuses.clear();
    this.#setState('connecting');
    this.#start();
  }

  #stop(goodbye) {
    const link = this.#link;
    this.#link = this.#run = null;
    clearTimeout(this.#retrying);
    link?.close(goodbye);
  }

  // What the page does

  #pageEvents() {
    const { document, window } = globalThis;
    return [
      [document, 'visibilitychange', this.#onVisibility],
      [document, 'freeze', this.#onHide],
      [document, 'resume', this.#onShow],
      [window, 'pagehide', this.#onHide],
      [window, 'pageshow', this.#onShow],
      [window, 'online', this.#onNetwork],
    ];
  }

  #onVisibility = () => this.#update();

  /** The page goes, or is kept frozen: another tab is to lead. That the user left is not said: it may be a reload. */
  #onHide = () => this.#stop(false);

  #onShow = () => {
    if (!this.#run && this.#ticking) this.#start();
  };

  /** There is a network again, or another one: what was connected by the last may not know that it is not any more. */
  #onNetwork = () => this.#beat(true);

  #isLooking() {
    return (globalThis.document?.visibilityState ?? 'visible') === 'visible';
  }

  #tick() {
    if (Date.now() - this.#beatAt >= this.#options.heartbeat) this.#beat();
  }

  #beat(now = false) {
    if (!this.#isLooking()) return;
    this.#beatAt = Date.now();
    this.#link?.beat(now);
  }

  #sleep() {
    clearInterval(this.#ticking);
    this.#ticking = 0;
    for (const [target, type, handler] of this.#pageEvents()) target?.removeEventListener?.(type, handler);
  }

  // Watched users and their statuses

  #unwatch(userId, entry) {
    const left = this.#watches.get(userId) - 1;
    if (left) this.#watches.set(userId, left);
    else this.#watches.delete(userId);
    const listeners = this.#listeners.get(userId);
    if (!entry || !listeners) return;
    listeners.delete(entry);
    if (!listeners.size) this.#listeners.delete(userId);
  }

  /** What comes and goes in one task is told at once: what was taken away and put back, not at all. */
  #flushSoon() {
    if (this.#flushing) return;
    this.#flushing = true;
    queueMicrotask(() => {
      this.#flushing = false;
      for (const userId of this.#statuses.keys()) if (!this.#watches.has(userId)) this.#statuses.delete(userId);
      this.#update();
    });
  }

  #update() {
    this.#link?.update(new Set(this.#watches.keys()), this.#isLooking());
  }

  #apply(told) {
    if (!this.#watches.has(told.userId)) return;
    const known = this.#statuses.get(told.userId);
    if (known && FIELDS.every((field) => known[field] === told[field])) return;
    const fields = FIELDS.filter((field) => told[field] !== undefined);
    const status = Object.freeze(Object.fromEntries(fields.map((field) => [field, told[field]])));
    this.#statuses.set(told.userId, status);
    this.#call(this.#listeners.get(told.userId), status);
    this.#call(this.#handlers.change, status);
  }

  // Requests

  #ask(event, payload) {
    if (!this.#run) throw new PresenceError('CLOSED', 'there is no connection: call connect()');
    return new Promise((resolve, reject) => {
      const id = (this.#lastAsk += 1);
      const late = () => this.#answered(id, { error: new PresenceError('TIMEOUT', `${event} was not answered`) });
      this.#asks.set(id, { event, payload, resolve, reject, timer: setTimeout(late, LONGEST_ASK) });
      this.#link?.ask(id, event, payload);
    });
  }

  #answered(id, { data, error }) {
    const ask = this.#asks.get(id);
    if (!ask) return;
    this.#asks.delete(id);
    clearTimeout(ask.timer);
    if (error) ask.reject(error);
    else ask.resolve(data);
  }

  #refuse(code, message) {
    for (const id of [...this.#asks.keys()]) this.#answered(id, { error: new PresenceError(code, message) });
  }

  // Listeners

  #setState(state) {
    if (state === this.#state) return;
    this.#state = state;
    this.#call(this.#handlers.state, state);
  }

  #error(error) {
    if (this.#handlers.error.size) this.#call(this.#handlers.error, error);
    else console.warn(`presence: ${error.code}: ${error.message}`);
  }

  /** One that throws is the page's to hear of, and keeps nothing from the others. */
  #call(entries, told) {
    for (const { listener } of [...(entries ?? [])]) {
      try {
        listener(told);
      } catch (error) {
        queueMicrotask(() => { throw error; });
      }
    }
  }
}
