/*
 * Presence gateway, in the browser: one connection, whom it watches, and what is known of them.
 * Part of presence-client.js.
 */

import { PresenceError, subjectOf } from './presence-token.js';

const NAMESPACE = '/ws/messages';
const PATIENCE = 15_000; // milliseconds for an answer, after which the connection is taken for dead
const BATCH = 1000; // as many users as one request may name
const LINGER = 2000; // milliseconds in which who is not shown any more may be shown again
const DOUBT = 2000; // milliseconds at most until what an event does not say is asked for
const FIRST_REST = 1000; // milliseconds until what failed is tried again; twice as long each time
const LONGEST_REST = 30_000;
const LONGEST_TIMER = 2 ** 31 - 1;
const TOKEN_CODES = new Set(['TOKEN_MISSING', 'TOKEN_INVALID', 'TOKEN_EXPIRED']);

const failure = (error) => `getToken failed: ${error?.message ?? error}`;
const rest = (failures) => Math.min(FIRST_REST * 2 ** failures, LONGEST_REST) * (0.75 + Math.random() / 2);

/**
 * options: url, path, io, tokens (Tokens), heartbeat (milliseconds).
 * tell: what is called with what comes of it: statuses(list), state(name), error(error), answered(id, answer), stranger().
 */
export class Connection {
  #options;
  #tell;
  #socket = null;
  #state = '';
  #timers = {}; // by what each is for
  #session = null; // made anew with each connection: what waits for an old one gives up
  #wanted = new Set();
  #asked = new Set(); // whom the server is known to let us hear of
  #doubted = new Set(); // of whom an event did not say all
  #narrowed = false; // whether it knows that we hear of nobody else
  #lingered = false; // whether those who are not wanted any more have had their time
  #batch = BATCH;
  #limit = Infinity; // how many may be watched, once that is known
  #looking = false;
  #beatAt = -Infinity;
  #epoch = 0; // counts the connections that began anew: versions may, too
  #known = new Map(); // userId -> {status, epoch}
  #failures = 0;
  #refusals = 0;
  #subject = null;

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
    // Of its own: where the page has other namespaces, they are not to be closed with this one.
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

  /** goodbye: whether the user is to be offline at once, where this is the last connection; else within the grace. */
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

  /** wanted: the ids of all that are shown; looking: whether anybody can see them. */
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

  /** What is known of some users. */
  recall(userIds) {
    return userIds.map((userId) => this.#known.get(userId)?.status).filter(Boolean);
  }

  /** Say that somebody is there. By several tabs it is said once; now: also where it has just been. */
  beat(now = false) {
    const time = Date.now();
    if (!this.#session || (!now && time - this.#beatAt < this.#options.heartbeat * 0.8)) return;
    this.#beatAt = time;
    this.#request('heartbeat').catch((error) => this.#complain(error));
  }

  /** Ask for something; `answered` is called with the id, unless the connection is lost before. */
  ask(id, event, payload) {
    if (!this.#session) return;
    this.#request(event, payload).then(
      (data) => this.#tell.answered(id, { data }),
      (error) => {
        if (error.code !== 'LOST') this.#tell.answered(id, { error });
      },
    );
  }

  /** take: called with the answer as it comes, before what comes behind it is heard. */
  #request(event, payload, take = () => {}) {
    const session = this.#session;
    const socket = this.#socket;
    return new Promise((resolve, reject) => {
      const answered = (failed, answer) => {
        if (failed) {
          // No answer, and no word of a lost connection either: the machine has slept, or the network has changed.
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
    if (this.#socket.active) return; // socket.io-client comes back by itself
    if (reason === 'io server disconnect') this.#options.tokens.spend(); // it has ended, or a backend wants us to have another
    this.#again();
  }

  /** Connect when some time has passed; seconds, or by how often it has failed. */
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
    if (this.#socket.active) return; // nobody was reached
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

  /** Whether a token is of the user whom the connection is of; of another one begins anew. */
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

  /** Bring the server's list to what is wanted: one request after the other, with all that has come together meanwhile. */
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
    if (!this.#narrowed) return watch(this.#batch); // also of nobody: until it is asked, it would hear of everyone
    if (!this.#looking) return null; // to ask would be activity, and nobody is there
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

  /** More than may be watched. How many may, nobody says: it is found by halves. */
  #overfull(step, error) {
    if ([...this.#asked].some((userId) => !this.#wanted.has(userId))) {
      this.#lingered = true; // these make room
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

  // What is known

  #onOnline({ userId, status, timestamp: at, version }) {
    const told = { userId, online: true, status, statusText: null, lastActive: at, connectedAt: at, version };
    if (!this.#learn([told])) return;
    // The event does not have the text that a status may have. Not all who watch the user are to ask at the same time.
    this.#doubted.add(userId);
    if (!this.#timers.doubt) this.#after('doubt', Math.random() * DOUBT, () => this.#sync());
  }

  /** Take in what the server said, in the order in which it did; asked: as an answer. Returns whether it was news. */
  #learn(statuses, asked = false) {
    const news = [];
    for (const status of statuses) {
      if (!this.#wanted.has(status.userId) && !this.#asked.has(status.userId)) continue;
      const known = this.#known.get(status.userId);
      // With version 0 they were never seen, or what was told is taken back.
      if (known?.epoch === this.#epoch && status.version !== 0) {
        const hidden = status.invisible || known.status.invisible; // to their own pages, under one version
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
    if (error.code !== 'LOST') this.#tell.error(error); // that the state says
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
