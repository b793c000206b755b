// Hosts every client of a run, each with a real connection of its own. Commands come as JSON lines on stdin; what
// happens to each client leaves as JSON lines on stdout, in the order in which it happened: the records of trace.py.

import { createInterface } from 'node:readline';

import { io } from 'socket.io-client';

const EVENTS = ['user-online', 'user-offline', 'user-status-changed'];
const STEP = 5000; // milliseconds that an answer may take
const RETRY = 250;
const ROSTER_CHUNK = 1000; // the most that check-users-status takes

const clients = new Map();
let urls = [];
let roster = [];
let pending = [];

/** The machine's monotonic clock, in milliseconds: the harness reads the same one. */
const now = () => Number(process.hrtime.bigint()) / 1e6;
const jitter = (least, most) => least + Math.random() * (most - least);
const told = (users) => users.map(({ userId, version, status }) => [userId, version, status]);

function write(record) {
  if (!pending.length) setImmediate(flush);
  pending.push(JSON.stringify(record));
}

function flush() {
  if (pending.length) process.stdout.write(`${pending.join('\n')}\n`);
  pending = [];
}

class Client {
  constructor({ client, token, node, pinned, transports }) {
    this.client = client;
    this.node = node;
    this.pinned = pinned;
    this.up = false;
    this.since = now(); // when it began to try
    this.gone = false; // closed by us: whatever still comes is not heard by anyone
    this.socket = io(`${urls[node]}/ws/messages`, {
      forceNew: true, auth: { token }, transports, timeout: 2000, reconnectionDelay: 50, reconnectionDelayMax: 400,
    });
    this.on('connected', ({ reconnect }) => this.begin(reconnect));
    for (const event of EVENTS) this.on(event, (data) => this.hear(event, data));
    this.on('disconnect', (reason) => this.lost(reason));
    this.on('connect_error', (error) => {
      this.record('refused', { node: this.node, why: error.data?.code ?? error.message });
      this.moveOn();
    });
  }

  on(event, listener) {
    this.socket.on(event, (...args) => this.gone || listener(...args));
  }

  record(kind, fields) {
    write({ kind, at: now(), client: this.client, ...fields });
  }

  begin(resumed) {
    this.up = true;
    this.record('up', { node: this.node, resumed });
    this.look();
  }

  hear(event, { userId: user, version, status, timestamp }) {
    this.record('heard', { event, user, version, status, stamp: Date.parse(timestamp) });
  }

  /** Asks for a picture of everyone: who is who, then who is online. */
  look() {
    for (let start = 0; start < roster.length; start += ROSTER_CHUNK) {
      this.ask('check-users-status', { userIds: roster.slice(start, start + ROSTER_CHUNK) }, ({ statuses }) =>
        this.record('answer', { users: told(statuses) }));
    }
    this.page({});
  }

  page(query) {
    this.ask('get-online-users', query, ({ users, nextCursor }) => {
      this.record('answer', { users: told(users), whole: !query.cursor && !nextCursor });
      if (nextCursor) this.page({ cursor: nextCursor });
    });
  }

  /** Asks until there is an answer, or the connection is another one. By callbacks: a promise's would come late. */
  ask(request, payload, take) {
    const { id } = this.socket;
    const still = () => !this.gone && this.up && this.socket.id === id;
    this.socket.timeout(STEP).emit(request, payload, (error, answer) => {
      if (!still()) return;
      if (!error && !answer.error) return void take(answer.data);
      this.record('failed', { why: `${request}: ${error?.message ?? answer.error.code}` });
      setTimeout(() => still() && this.ask(request, payload, take), RETRY);
    });
  }

  lost(why) {
    if (this.up) this.record('lost', { why });
    this.up = false;
    this.moveOn();
  }

  /** To the next gateway, as behind a load balancer. What the library does not do by itself is done for it. */
  moveOn() {
    if (!this.pinned) this.node = (this.node + 1) % urls.length;
    this.since = now();
    this.socket.io.uri = `${urls[this.node]}/ws/messages`;
    if (!this.socket.active) setTimeout(() => this.gone || this.socket.connect(), jitter(50, RETRY));
  }

  goodbye() {
    this.end('left', {});
    this.gone = true;
    this.socket.disconnect();
  }

  /** Where the greeting had not come, the gateway may have let the client in all the same. */
  end(kind, fields) {
    if (this.up) this.record(kind, fields);
    else this.record('abandoned', { node: this.node, since: this.since });
    this.up = false;
  }

  /** Destroys the transport under the connection; the client comes back by itself, or never does. */
  drop(back) {
    const { engine } = this.socket.io;
    const ws = engine?.transport?.ws;
    this.end('lost', { why: back ? 'dropped' : 'vanished' });
    if (!back) this.gone = true;
    if (ws) ws.terminate();
    else engine?.close(); // over polling, which is no goodbye
    if (!back) this.socket.disconnect();
  }
}

const commands = {
  world({ gateways, users }) {
    urls = gateways;
    roster = users;
  },
  open: (options) => clients.set(options.client, new Client(options)),
  goodbye: ({ client }) => clients.get(client).goodbye(),
  drop: ({ client }) => clients.get(client).drop(true),
  vanish: ({ client }) => clients.get(client).drop(false),
  storm: () => clients.forEach((client) => client.gone || client.drop(true)),
  look: () => clients.forEach((client) => client.up && client.look()),
};

process.stdout.on('error', () => process.exit(1));
createInterface({ input: process.stdin })
  .on('line', (line) => {
    const { command, ...options } = JSON.parse(line);
    commands[command](options);
  })
  .on('close', () => process.exit(0)); // the harness has ended, however it did
