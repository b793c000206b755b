/*
 * Presence gateway, in the browser: one connection for all tabs of a user. Part of presence-client.js.
 *
 * The tab that holds a lock is the leader: it has the connection, and passes everything on to the other tabs. When it
 * closes, crashes or sleeps, another tab becomes the leader, and connects long before the user's grace is over.
 */

import { PresenceError } from './presence-token.js';

const STALL = 10_000; // milliseconds in which a leader has to answer; one that does not is asleep

/** Whether this browser can share a connection. None can on a page without TLS, except on localhost. */
export const canShare = () => Boolean(globalThis.navigator?.locks && globalThis.BroadcastChannel && globalThis.crypto?.randomUUID);

/**
 * Has the methods of a Connection, and stands in for it.
 * name: the same in all tabs that may share a connection.
 * open: makes the Connection when this tab becomes the leader; called with the functions that it is to call.
 * tell: the functions that this calls, as for a Connection.
 */
export class Tabs {
  #id = crypto.randomUUID();
  #name;
  #open;
  #tell;
  #channel = null;
  #wanted = new Set();
  #looking = false;
  #leader = null; // {from, term}: the leader, as last heard of
  #stall = 0;
  #closed = false;
  #release = null; // releases the lock that shows the other tabs that this one is alive
  #withdraw = null; // stops waiting to become the leader
  #resign = null; // stops being the leader
  // In the leader only:
  #connection = null;
  #tabs = new Map(); // the others, by id: {wanted, looking, forget}

  constructor(name, open, tell) {
    this.#name = name;
    this.#open = open;
    this.#tell = tell;
  }

  open() {
    this.#channel = new BroadcastChannel(this.#name);
    this.#channel.onmessage = ({ data }) => this.#hear(data);
    const living = () => new Promise((release) => {
      this.#release = release;
      if (this.#closed) {
        release();
      } else {
        this.#campaign({});
        this.#greet();
      }
    });
    navigator.locks.request(this.#lockOf(this.#id), living);
  }

  /** Close this tab's part. goodbye: as for a Connection, if this is the last tab; otherwise the others go on. */
  close(goodbye) {
    this.#closed = true;
    this.#withdraw?.();
    this.#stepDown(goodbye && this.#tabs.size === 0);
    this.#release?.();
    clearTimeout(this.#stall);
    this.#channel.close();
    this.#channel = null;
  }

  update(wanted, looking) {
    const comes = looking && !this.#looking;
    this.#wanted = wanted;
    this.#looking = looking;
    if (this.#connection) this.#gather();
    else if (comes) this.#greet();
    else this.#post(this.#wish('want'));
  }

  beat(now) {
    if (this.#connection) {
      this.#connection.beat(now);
    } else {
      this.#post({ type: 'beat', now });
      this.#expect();
    }
  }

  ask(id, event, payload) {
    if (this.#connection) this.#connection.ask(`${this.#id} ${id}`, event, payload);
    else this.#post({ type: 'ask', id, event, payload });
  }

  #lockOf(id) {
    return `${this.#name} tab ${id}`;
  }

  // Electing a leader

  /** Wait to become the leader; or, with steal, replace a leader that is asleep. */
  #campaign({ steal = false }) {
    const waiting = new AbortController();
    this.#withdraw?.();
    this.#withdraw = () => waiting.abort();
    // A request that steals the lock cannot be withdrawn.
    navigator.locks.request(this.#name, steal ? { steal } : { signal: waiting.signal }, () => this.#lead()).catch(() => {
      if (!this.#connection) return; // it was withdrawn
      this.#stepDown(false); // another took it: this tab had slept
      this.#campaign({});
      this.#greet();
    });
  }

  /** Be the leader until the promise that this returns is resolved. */
  #lead() {
    if (this.#closed || this.#connection) return undefined;
    this.#expect(false);
    this.#leader = { from: this.#id, term: Math.max(Date.now(), (this.#leader?.term ?? 0) + 1) };
    this.#connection = this.#open({
      statuses: (statuses) => this.#say({ type: 'statuses', statuses }, () => this.#tell.statuses(statuses)),
      state: (state) => this.#onState(state),
      error: (error) => this.#tell.error(error),
      answered: (id, answer) => this.#pass(id, answer),
      stranger: () => this.#tell.stranger(),
    });
    const end = new Promise((resign) => { this.#resign = resign; });
    this.#say({ type: 'lead', state: 'connecting' });
    this.#connection.open();
    this.#gather();
    return end;
  }

  #stepDown(goodbye) {
    const connection = this.#connection;
    if (!connection) return;
    this.#connection = null;
    this.#resign(); // first, so that the next leader begins before this connection is closed
    connection.close(goodbye);
    for (const { forget } of this.#tabs.values()) forget();
    this.#tabs.clear();
  }

  #onState(state) {
    // This tab's token was refused: it resigns, and another tab tries with its own.
    if (state === 'refused') this.#tell.state(state);
    else this.#say({ type: 'state', state }, () => this.#tell.state(state));
  }

  /** Announce this tab, and have everything sent again, also what was sent while this tab slept. */
  #greet() {
    if (this.#connection) return;
    this.#post(this.#wish('hello'));
    this.#expect();
  }

  /** Expect an answer from the leader. If none comes, and somebody looks at this tab, it takes the lead. */
  #expect(still = true) {
    if (!still) {
      clearTimeout(this.#stall);
      this.#stall = 0;
    } else if (!this.#stall && !this.#connection) {
      this.#stall = setTimeout(() => {
        this.#stall = 0;
        if (this.#looking) this.#campaign({ steal: true });
      }, STALL);
    }
  }

  // Messages between tabs

  #post(message) {
    // Not before this tab holds the lock that shows that it is alive; then everything is sent.
    if (this.#release) this.#channel?.postMessage({ ...message, from: this.#id });
  }

  /** As the leader, send something to all tabs; `here` does in this one what the message does in the others. */
  #say(message, here) {
    this.#post({ ...message, term: this.#leader.term });
    here?.();
  }

  #wish(type) {
    return { type, wanted: [...this.#wanted], looking: this.#looking };
  }

  #hear(message) {
    if (message.to !== undefined && message.to !== this.#id) return;
    if (['lead', 'state', 'statuses', 'answer'].includes(message.type)) {
      if (!this.#connection) this.#follow(message);
    } else if (this.#connection) {
      this.#serve(message);
    }
  }

  #follow({ type, from, to, term, state, statuses, id, answer }) {
    if (type === 'lead') {
      if (term < (this.#leader?.term ?? 0)) return;
      this.#leader = { from, term };
    }
    if (from !== this.#leader?.from) return; // a former leader that has slept
    this.#expect(false);
    if (type === 'lead' && to === undefined) this.#greet();
    if (statuses?.length) this.#tell.statuses(statuses);
    if (state) this.#tell.state(state);
    if (type === 'answer') this.#tell.answered(id, { data: answer.data, error: answer.error && revive(answer.error) });
  }

  #serve({ type, from, wanted, looking, now, id, event, payload }) {
    const reply = (message) => this.#say({ ...message, to: from });
    if (type === 'beat') {
      this.#connection.beat(now);
      reply({ type: 'state', state: this.#connection.state });
    } else if (type === 'ask') {
      this.#connection.ask(`${from} ${id}`, event, payload);
    } else {
      const before = this.#tabs.get(from);
      const forget = before?.forget ?? this.#follows(from);
      this.#tabs.set(from, { wanted, looking, forget });
      if (type === 'hello') {
        reply({ type: 'lead', state: this.#connection.state, statuses: this.#connection.recall(wanted) });
      } else {
        const known = new Set(before?.wanted);
        const statuses = this.#connection.recall(wanted.filter((userId) => !known.has(userId)));
        if (statuses.length) reply({ type: 'statuses', statuses });
      }
      this.#gather();
    }
  }

  /** Call back when a tab ends, in whichever way. Returns a function that cancels this. */
  #follows(id) {
    const waiting = new AbortController();
    navigator.locks
      .request(this.#lockOf(id), { mode: 'shared', signal: waiting.signal }, () => this.#forget(id))
      .catch(() => {}); // it was cancelled
    return () => waiting.abort();
  }

  #forget(id) {
    this.#tabs.delete(id);
    if (this.#connection) this.#gather();
  }

  /** The users that any tab wants to watch, and whether anybody looks at one of the tabs. */
  #gather() {
    const wanted = new Set(this.#wanted);
    let looking = this.#looking;
    for (const tab of this.#tabs.values()) {
      for (const userId of tab.wanted) wanted.add(userId);
      looking ||= tab.looking;
    }
    this.#connection.update(wanted, looking);
  }

  #pass(name, { data, error }) {
    const [tab, id] = name.split(' ');
    if (tab === this.#id) {
      this.#tell.answered(Number(id), { data, error });
    } else {
      const told = error && { code: error.code, message: error.message, retryAfter: error.retryAfter };
      this.#say({ type: 'answer', to: tab, id: Number(id), answer: { data, error: told } });
    }
  }
}

/** An error that came from another tab. */
function revive({ code, message, retryAfter }) {
  return new PresenceError(code, message, retryAfter);
}
