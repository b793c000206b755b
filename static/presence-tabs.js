/*
 * Presence gateway, in the browser: one connection for all tabs of a user. Part of presence-client.js.
 *
 * The tab that holds the lock leads: it has the connection, and tells the others what comes of it. When it closes, crashes
 * or sleeps, another leads. The user's connection was lost then, and there is a new one long before its grace is over.
 */

import { PresenceError } from './presence-token.js';

const STALL = 10_000; // milliseconds in which a leader answers; one that does not is asleep

/** Whether this browser has what it takes; it has none of it on a page without TLS that is not of this machine. */
export const canShare = () => Boolean(globalThis.navigator?.locks && globalThis.BroadcastChannel && globalThis.crypto?.randomUUID);

/**
 * In place of a Connection.
 * name: the same in all tabs that may share.
 * open: makes the Connection, when this tab leads; called with what it is to tell.
 * tell: what is called, as a Connection does.
 */
export class Tabs {
  #id = crypto.randomUUID();
  #name;
  #open;
  #tell;
  #channel = null;
  #wanted = new Set();
  #looking = false;
  #leader = null; // {from, term}: who leads, as it was last heard
  #stall = 0;
  #closed = false;
  #release = null; // lets go of the lock by which the others know that this tab lives
  #withdraw = null; // gives up waiting for the lead
  #resign = null; // gives up the lead
  // Of the leader alone:
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

  /** goodbye: as a Connection's, where this is the last tab; otherwise the others go on. */
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

  // Who leads

  /** Wait for the lead; or take it, from one who is asleep. */
  #campaign({ steal = false }) {
    const waiting = new AbortController();
    this.#withdraw?.();
    this.#withdraw = () => waiting.abort();
    // A request that takes it cannot be withdrawn.
    navigator.locks.request(this.#name, steal ? { steal } : { signal: waiting.signal }, () => this.#lead()).catch(() => {
      if (!this.#connection) return; // it was withdrawn
      this.#stepDown(false); // another took it: this tab had slept
      this.#campaign({});
      this.#greet();
    });
  }

  /** Lead, until what this returns is kept. */
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
    this.#resign(); // the next one begins before this one's connection is gone
    connection.close(goodbye);
    for (const { forget } of this.#tabs.values()) forget();
    this.#tabs.clear();
  }

  #onState(state) {
    // It was this tab's token that was refused: it goes, and another one tries its own.
    if (state === 'refused') this.#tell.state(state);
    else this.#say({ type: 'state', state }, () => this.#tell.state(state));
  }

  /** Say who is here, and be told all anew, also what was said while this tab slept. */
  #greet() {
    if (this.#connection) return;
    this.#post(this.#wish('hello'));
    this.#expect();
  }

  /** Expect an answer of the leader; where none comes, and somebody looks at this tab, it leads. */
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

  // What the tabs say to each other

  #post(message) {
    // Not before the others can know when this tab ends; it is all said then.
    if (this.#release) this.#channel?.postMessage({ ...message, from: this.#id });
  }

  /** Say it to all tabs, as the leader; `here` does what it means to this one. */
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
    if (from !== this.#leader?.from) return; // one that has slept
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

  /** Hear of it when a tab ends, however it does. Returns what to call when that is of no interest any more. */
  #follows(id) {
    const waiting = new AbortController();
    navigator.locks
      .request(this.#lockOf(id), { mode: 'shared', signal: waiting.signal }, () => this.#forget(id))
      .catch(() => {}); // it was of no interest any more
    return () => waiting.abort();
  }

  #forget(id) {
    this.#tabs.delete(id);
    if (this.#connection) this.#gather();
  }

  /** Whom any tab wants, and whether anybody looks at one. */
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
