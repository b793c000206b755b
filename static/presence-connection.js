/*
 * Presence gateway, in the browser: one connection to the gateway, the users it watches, and their statuses.
 * Part of presence-client.js.
 */

import { PresenceError, subjectOf } from './presence-token.js';

const NAMESPACE = '/ws/messages';
const PATIENCE = 15_000; // milliseconds to wait for an answer; then the connection is taken for dead
const BATCH = 1000; // users in one request at the most
const LINGER = 2000; // milliseconds that a user stays watched who is not shown any more: they may be shown again
const DOUBT = 2000; // milliseconds at the most until a status is asked for of which an event did not say everything
const FIRST_REST = 1000; // milliseconds until something that failed is tried again; twice as long each time
const LONGEST_REST = 30_000;
const LONGEST_TIMER = 2 ** 31 - 1;
const TOKEN_CODES = new Set(['TOKEN_MISSING', 'TOKEN_INVALID', 'TOKEN_EXPIRED']);

const failure = (error) => `getToken failed: ${error?.message ?? error}`;
const rest = (failures) => Math.min(FIRST_REST * 2 ** failures, LONGEST_REST) * (0.75 + Math.random() / 2);

/**
 * options: url, path, io, tokens (Tokens), heartbeat (milliseconds).
 * tell: the functions that it calls: statuses(list), state(name), error(error), answered(id, answer), and stranger() when
 * the token turns out to be another user's.
 */
export class Connection {
  #options;
  #tell;
  #socket = null;
  #state = '';
  #timers = {}; // by purpose
  #session = null; // an object per connection: work that was begun for an older one sees that it has changed, and stops
  #wanted = new Set(); // user ids to watch
  #asked = new Set(); // user ids that the server has on our watch list
  #doubted = new Set(); // user ids of which an event did not say everything
  #narrowed = false; // whether the server sends us watched users only
  #lingered = false; // whether LINGER is over for users that are not wanted any more
  #batch = BATCH;
  #limit = Infinity; // how many users may be watched; found out when the server refuses more
  #looking = false; // whether anybody can see the page
  #beatAt = -Infinity;
  #epoch = 0; // counts the connections that did not recover: versions are comparable within one epoch only
  #known = new Map(); // userId -> {status, epoch}
  #failures = 0;
  #refusals = 0;
  #subject = null; // whose token it is; see subjectOf

  constructor(options, tell) {
    this.#options = options;
    this.#tell = tell;
  }

  get state() {
    return this.#state;
  }

  open() {
    const { url, path, io, tokens } = this.#options;
    this.#subject = subjectOf(tokens.token ?? '');
    this.#setState('connecting');
    // forceNew: closing it must not close other namespaces that the page may have.
    const socket = io(url + NAMESPACE, { path, forceNew: true, auth: (send) => this.#authenticate(send) });
    this.#socket = socket;
    socket.on('connect', () => this.#onConnect());
    socket.on('disconnect', (reason) => this.#onDisconnect(reason));
    socket.on('connect_error', (error) => this.#onRefusal(error));
    socket.on('token-expired', () => this.#renew());
    socket.on('user-online', (user) => this.#onOnline(user));
    socket.on('user-offline', (user) => this.#learn([{ ...user, statusText: null, connectedAt: null }]));
    socket.on('user-status-changed', (user) => this.#learn([user]));
  }

  /** Close. With goodbye, the user is offline at once if this was their last connection; otherwise after the grace. */
  close(goodbye) {
    const socket = this.#socket;
    this.#socket = this.#session = null;
    for (const name of Object.keys(this.#timers)) this.#cancel(name);
    if (!socket) return;
    socket.off();
    socket.io.reconnection(false);
    if (goodbye || !socket.connected) socket.disconnect();
    else socket.io.engine.close();
  }

  /** Say what to watch. wanted: the ids of all users that are shown; looking: whether anybody can see them. */
  update(wanted, looking) {
    const comes = looking && !this.#looking;
    const back = this.recall([...wanted].filter((userId) => !this.#wanted.has(userId)));
    this.#wanted = wanted;
    this.#looking = looking;
    if (back.length) this.#tell.statuses(back);
    if (comes) this.beat(true);
    this.#linger();
    this.#sync();
  }

  /** The statuses of some users, as far as they are known. */
  recall(userIds) {
    return userIds.map((userId) => this.#known.get(userId)?.status).filter(Boolean);
  }

  /** Send a heartbeat, unless one was sent just now, by another tab perhaps; with now, send it in any case. */
  beat(now = false) {
    const time = Date.now();
    if (!this.#session || (!now && time - this.#beatAt < this.#options.heartbeat * 0.8)) return;
    this.#beatAt = time;
    this.#request('heartbeat').catch((error) => this.#complain(error));
  }

  /** Send a request; `answered` is called with its id, unless the connection is lost before. */
  ask(id, event, payload) {
    if (!this.#session) return;
    this.#request(event, payload).then(
      (data) => this.#tell.answered(id, { data }),
      (error) => {
        if (error.code !== 'LOST') this.#tell.answered(id, { error });
      },
    );
  }

  /** Send a request, and return its answer. take: called with the answer before any later event is handled. */
  #request(event, payload, take = () => {}) {
    const session = this.#session;
    const socket = this.#socket;
    return new Promise((resolve, reject) => {
      const answered = (failed, answer) => {
        if (failed) {
          // No answer, and the loss was not noticed either: the machine has slept, or the network has changed.
          if (session && session === this.#session) socket.io.engine.close();
          reject(new PresenceError('LOST', `the connection was lost before ${event} was answered`));
        } else if (answer?.event === 'error') {
          reject(new PresenceError(answer.error.code, answer.error.message, answer.error.retryAfter));
        } else {
          take(answer.data);
          resolve(answer.data);
        }
      };
      socket.timeout(PATIENCE).emit(event, ...(payload === undefined ? [] : [payload]), answered);
    });
  }

  // Coming and going

  #onConnect() {
    this.#session = {};
    this.#failures = this.#refusals = 0;
    if (!this.#socket.recovered) {
      this.#asked.clear();
      this.#narrowed = false;
      this.#limit = Infinity;
      this.#epoch += 1;
    }
    this.#batch = BATCH;
    this.#plan();
    this.#setState('connected');
    if (this.#looking) this.beat(true);
    this.#sync();
  }

  #onDisconnect(reason) {
    this.#session = null;
    this.#cancel('renew');
    this.#setState('reconnecting');
    if (this.#socket.active) return; // socket.io-client reconnects by itself
    if (reason === 'io server disconnect') this.#options.tokens.spend(); // the token has expired, or a backend wants us to get another one
    this.#again();
  }

  /** Connect after so many seconds, or, if they are not given, after a time that grows with each failure. */
  #again(seconds) {
    const delay = seconds === undefined ? rest(this.#failures) : seconds * 1000;
    this.#failures += 1;
    this.#after('again', delay, () => this.#socket.connect());
  }

  async #authenticate(send) {
    const socket = this.#socket;
    try {
      const token = await this.#options.tokens.current();
      if (socket === this.#socket && this.#isOurs(token)) send({ token });
    } catch (error) {
      if (socket !== this.#socket) return;
      this.#tell.error(new PresenceError('TOKEN_MISSING', failure(error)));
      socket.disconnect();
      this.#setState(this.#epoch ? 'reconnecting' : 'connecting');
      this.#again();
    }
  }

  #onRefusal({ message, data }) {
    if (this.#socket.active) return; // the server was not reached, and socket.io-client tries again
    this.#setState(this.#epoch ? 'reconnecting' : 'connecting');
    if (TOKEN_CODES.has(data?.code)) {
      this.#replaceToken(data.code, message);
      return;
    }
    this.#tell.error(new PresenceError(data?.code ?? 'REFUSED', message, data?.retryAfter));
    this.#again(data?.retryAfter);
  }

  async #replaceToken(code, message) {
    const { tokens } = this.#options;
    const socket = this.#socket;
    const refused = tokens.token;
    this.#refusals += 1;
    let token;
    try {
      token = await tokens.renew();
    } catch (error) {
      if (socket !== this.#socket) return;
      this.#tell.error(new PresenceError(code, `${message}; ${failure(error)}`));
      tokens.spend();
      this.#again();
      return;
    }
    if (socket !== this.#socket || !this.#isOurs(token)) return;
    if (token && token !== refused && this.#refusals < 3) {
      socket.connect();
      return;
    }
    this.#tell.error(new PresenceError(code, message));
    this.#setState('refused');
  }

  /** Whether a token belongs to the user of this connection. If not, `stranger` is told, and begins anew. */
  #isOurs(token) {
    if (!token || subjectOf(token) === this.#subject) return true;
    this.#tell.stranger();
    return false;
  }

  #plan() {
    const { dueAt } = this.#options.tokens;
    if (dueAt < Infinity) this.#after('renew', Math.max(dueAt - Date.now(), FIRST_REST), () => this.#renew());
  }

  async #renew(failures = 0) {
    const session = this.#session;
    const { tokens } = this.#options;
    const before = tokens.token;
    this.#cancel('renew');
    try {
      const token = await tokens.renew();
      if (session !== this.#session || !this.#isOurs(token)) return;
      if (!token || token === before) throw new PresenceError('TOKEN_EXPIRED', 'getToken gives no newer token');
      await this.#request('refresh-token', { token });
      if (session === this.#session) this.#plan();
    } catch (error) {
      if (session === null || session !== this.#session) return;
      this.#complain(error instanceof PresenceError ? error : new PresenceError('TOKEN_EXPIRED', failure(error)));
      this.#after('renew', rest(failures), () => this.#renew(failures + 1));
    }
  }

  // Whom it watches

  /** Make the server's watch list what is wanted: one request after the other, each with all that has gathered. */
  async #sync() {
    const session = this.#session;
    if (!session || session.syncing) return;
    session.syncing = true;
    let failures = 0;
    for (let step = this.#next(); step; step = this.#next()) {
      try {
        await this.#request(step.event, { userIds: step.userIds }, (data) => {
          if (session === this.#session) this.#done(step, data);
        });
        if (session !== this.#session) return;
        failures = 0;
      } catch (error) {
        if (session !== this.#session) return;
        if (error.code === 'INVALID_PAYLOAD' && step.event === 'watch-users' && step.userIds.length) {
          this.#overfull(step, error);
        } else {
          if (error.code !== 'RATE_LIMITED') this.#complain(error);
          const delay = error.retryAfter ? error.retryAfter * 1000 : rest(failures);
          await new Promise((resolve) => { this.#after('sync', delay, resolve); });
          failures += 1;
          if (session !== this.#session) return;
        }
      }
    }
    session.syncing = false;
  }

  #next() {
    const missing = [...this.#wanted].filter((userId) => !this.#asked.has(userId));
    const watch = (count) => ({ event: 'watch-users', userIds: missing.slice(0, count) });
    if (!this.#narrowed) return watch(this.#batch); // even if it is empty: without a watch list the server sends everyone
    if (!this.#looking) return null; // a request counts as activity, and nobody is looking
    const extra = [...this.#asked].filter((userId) => !this.#wanted.has(userId));
    if (extra.length && this.#lingered) return { event: 'unwatch-users', userIds: extra.slice(0, BATCH) };
    const room = this.#limit - this.#asked.size;
    if (missing.length && room > 0) return watch(Math.min(this.#batch, room));
    if (missing.length && extra.length) return { event: 'unwatch-users', userIds: extra.slice(0, BATCH) };
    const doubted = [...this.#doubted].filter((userId) => this.#asked.has(userId));
    return doubted.length ? { event: 'watch-users', userIds: doubted.slice(0, BATCH) } : null;
  }

  #done(step, data) {
    if (step.event === 'unwatch-users') {
      for (const userId of step.userIds) {
        this.#asked.delete(userId);
        if (!this.#wanted.has(userId)) this.#known.delete(userId);
      }
      return;
    }
    this.#narrowed = true;
    for (const userId of step.userIds) {
      this.#asked.add(userId);
      this.#doubted.delete(userId);
    }
    this.#learn(data.statuses, true);
  }

  /** The server refused to watch so many. It does not say how many it allows, so that is found by halving. */
  #overfull(step, error) {
    if ([...this.#asked].some((userId) => !this.#wanted.has(userId))) {
      this.#lingered = true; // users that are not wanted any more make room at once
    } else if (step.userIds.length > 1) {
      this.#batch = Math.floor(step.userIds.length / 2);
    } else {
      this.#limit = this.#asked.size;
      this.#batch = BATCH;
      this.#narrowed = true;
      this.#tell.error(error);
    }
  }

  #linger() {
    const extra = [...this.#asked].some((userId) => !this.#wanted.has(userId));
    if (!extra) {
      this.#lingered = false;
      this.#cancel('linger');
    } else if (!this.#timers.linger && !this.#lingered) {
      this.#after('linger', LINGER, () => {
        this.#lingered = true;
        this.#sync();
      });
    }
  }

  // Statuses

  #onOnline({ userId, status, timestamp: at, version }) {
    const told = { userId, online: true, status, statusText: null, lastActive: at, connectedAt: at, version };
    if (!this.#learn([told])) return;
    // The event lacks the status text. It is asked for after a random time, so that not all watchers ask at once.
    this.#doubted.add(userId);
    if (!this.#timers.doubt) this.#after('doubt', Math.random() * DOUBT, () => this.#sync());
  }

  /** Take in statuses, in the order in which the server sent them. asked: they are an answer. Returns whether any was new. */
  #learn(statuses, asked = false) {
    const news = [];
    for (const status of statuses) {
      if (!this.#wanted.has(status.userId) && !this.#asked.has(status.userId)) continue;
      const known = this.#known.get(status.userId);
      // Version 0: the user was never seen, or we may not see them any more.
      if (known?.epoch === this.#epoch && status.version !== 0) {
        const hidden = status.invisible || known.status.invisible; // a user's own pages: their real status changes without a new version
        if (status.version < known.status.version) continue;
        if (status.version === known.status.version && !asked && !hidden) continue;
      }
      this.#known.set(status.userId, { status, epoch: this.#epoch });
      news.push(status);
    }
    if (news.length) this.#tell.statuses(news);
    return news.length > 0;
  }

  // Small things

  #complain(error) {
    if (error.code !== 'LOST') this.#tell.error(error); // LOST shows in the state
  }

  #setState(state) {
    if (state === this.#state) return;
    this.#state = state;
    this.#tell.state(state);
  }

  #after(name, delay, then) {
    this.#cancel(name);
    this.#timers[name] = setTimeout(() => {
      delete this.#timers[name];
      then();
    }, Math.min(Math.max(delay, 0), LONGEST_TIMER));
  }

  #cancel(...names) {
    for (const name of names) {
      clearTimeout(this.#timers[name]);
      delete this.#timers[name];
    }
  }
}
