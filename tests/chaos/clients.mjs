// Hosts every client of a run, each with a real connection of its own. Commands come as JSON lines on stdin; what
// happens to each client leaves as JSON lines on stdout, in the order in which it happened: the records of trace.py.

import { createHmac } from 'node:crypto';
import { createInterface } from 'node:readline';

import { io } from 'socket.io-client';
import WebSocket from 'ws';

const EVENTS = ['user-online', 'user-offline', 'user-status-changed'];
const SAID = 'message.sent'; // as Echo and Pusher's clients hear what is new-message here
const STEP = 5000; // milliseconds that an answer may take
const RETRY = 250;
const ROSTER_CHUNK = 999; // one less than check-users-status takes
const PING = 1000;
const SILENCE = 3000; // milliseconds without a word after which a Pusher client goes elsewhere
const NOBODY = 'nobody-ever'; // asked for with all others: what is answered of one never seen

const clients = new Map();
let urls = [];
let roster = [];
let pusher = {};
let pending = [];

/** The machine's monotonic clock, in milliseconds: the harness reads the same one. */
const now = () => Number(process.hrtime.bigint()) / 1e6;
const jitter = (least, most) => least + Math.random() * (most - least);
const told = (users) => users.map(({ userId, version, status }) => [userId, version, status]);
const roomOf = (channel) => channel.replace(/^(presence-)?room-/, '');
const besidesName = ({ userId, timestamp, ...rest }) => JSON.stringify(rest);

function write(record) {
  if (!pending.length) setImmediate(flush);
  pending.push(JSON.stringify(record));
}

function flush() {
  if (pending.length) process.stdout.write(`${pending.join('\n')}\n`);
  pending = [];
}

class Client {
  namespace = '/ws/messages';

  constructor({ client, user, token, node, pinned, transports, watches, channels }) {
    this.client = client;
    this.user = user;
    this.token = token;
    this.transports = transports;
    this.watches = watches;
    this.channels = channels;
    this.inside = new Set(); // of those
    this.node = node;
    this.pinned = pinned;
    this.up = false;
    this.since = now(); // when it began to try
    this.gone = false; // closed by us: whatever still comes is not heard by anyone
  }

  connect() {
    this.socket = io(`${urls[this.node]}${this.namespace}`, {
      forceNew: true, auth: { token: this.token }, transports: this.transports, timeout: 2000, reconnectionDelay: 50,
      reconnectionDelayMax: 400,
    });
    this.listen();
    this.on('disconnect', (reason) => this.lost(reason));
    this.on('connect_error', (error) => {
      this.record('refused', { node: this.node, why: error.data?.code ?? error.message });
      this.moveOn();
    });
  }

  listen() {
    this.on('connected', ({ reconnect }) => this.begin(reconnect));
    for (const event of EVENTS) this.on(event, (data) => this.hear(event, data));
    this.on('notification', ({ number }, ...rest) => {
      this.record('notified', { number });
      if (typeof rest.at(-1) === 'function') rest.at(-1)();
    });
    this.on('channel-members', ({ channel, members }) => this.joined(channel, members, true));
    this.on('channel-left', ({ channel }) => {
      this.inside.delete(channel);
      this.record('parted', { channel });
      this.join(channel);
    });
    this.on('member-added', (member) => this.member(member.channel, member.userId, true, member.timestamp));
    this.on('member-removed', (member) => this.member(member.channel, member.userId, false, member.timestamp));
    this.on('new-message', (message) => this.said(message));
  }

  on(event, listener) {
    this.socket.on(event, (...args) => this.gone || listener(...args));
  }

  record(kind, fields) {
    write({ kind, at: now(), client: this.client, ...fields });
  }

  begin(resumed) {
    this.up = true;
    const recovered = Boolean(this.socket?.recovered);
    this.record('up', { node: this.node, resumed, recovered });
    this.look();
    if (!recovered) this.inside.clear();
    for (const channel of this.channels) {
      if (!this.inside.has(channel)) this.join(channel);
      else if (!channel.startsWith('presence-')) this.joined(channel, [], true);
    }
  }

  join(channel) {
    this.ask('join-channel', { channel }, ({ members = [] }) => this.joined(channel, members));
  }

  /** `again` where the gateway has put it back, which came back to what it had missed. */
  joined(channel, members, again = false) {
    this.inside.add(channel);
    this.record('joined', { channel, members: members.map((each) => each.userId ?? each.user_id), again });
  }

  member(channel, user, added, timestamp) {
    this.record('member', { channel, user, added, stamp: timestamp ? Date.parse(timestamp) : 0 });
  }

  said({ room_id: room, message }) {
    const channel = this.channels.find((each) => roomOf(each) === room);
    if (channel) this.record('message', { channel, number: Number(message) });
  }

  hear(event, { userId: user, version, status, timestamp }) {
    this.record('heard', { event, user, version, status, stamp: Date.parse(timestamp) });
  }

  /** Asks for a picture of everyone: who is who, then who is online. */
  look() {
    if (this.watches.length) {
      this.ask('watch-users', { userIds: [...this.watches, NOBODY] }, ({ statuses }) => {
        this.read(statuses);
        this.record('watching', {});
      });
      return;
    }
    for (let start = 0; start < roster.length; start += ROSTER_CHUNK) {
      this.ask('check-users-status', { userIds: [...roster.slice(start, start + ROSTER_CHUNK), NOBODY] },
        ({ statuses }) => {
          const unknown = this.read(statuses);
          if (!start) this.lookAtOne(unknown.length ? unknown : roster);
        });
    }
    this.page({});
  }

  /** Asks for one of some alone, which is answered another way. */
  lookAtOne(users) {
    this.ask('check-user-status', { userId: users[Math.floor(jitter(0, users.length))] },
      (status) => this.read([status]));
  }

  /** Takes statuses, and returns of whom they are no other than NOBODY's. */
  read(statuses) {
    this.nobody = statuses.filter(({ userId }) => userId === NOBODY).map(besidesName)[0] ?? this.nobody;
    const others = statuses.filter(({ userId }) => userId !== NOBODY);
    const unknown = others.filter((status) => besidesName(status) === this.nobody).map(({ userId }) => userId);
    this.record('answer', { users: told(others), unknown });
    return unknown;
  }

  page(query) {
    this.ask('get-online-users', query, ({ users, count, nextCursor }) => {
      this.record('answer', { users: told(users), whole: !query.cursor && !nextCursor, count });
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

  /** Sets a status by hand; where there is no answer, or an error, nobody knows whether it was. */
  choose(status) {
    if (!this.up) return;
    const since = now();
    this.socket.timeout(STEP).emit('set-status', { status }, (error, answer) =>
      this.record('chose', { status, since, sure: !error && !answer.error }));
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
    this.socket.io.uri = `${urls[this.node]}${this.namespace}`;
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

/** What Laravel Echo says by `broadcaster: 'socket.io'`. */
class EchoClient extends Client {
  namespace = '/';

  listen() {
    this.on('connect', () => this.begin(false));
    this.on('presence:subscribed', (channel, members) => this.joined(channel, members));
    this.on('presence:joining', (channel, member) => this.member(channel, member.user_id, true));
    this.on('presence:leaving', (channel, member) => this.member(channel, member.user_id, false));
    this.on('subscription_error', (channel, status) => {
      this.record('failed', { why: `subscribe: ${status}` });
      setTimeout(() => this.up && this.join(channel), RETRY);
    });
    this.on(SAID, (_channel, message) => this.said(message));
  }

  look() {}

  join(channel) {
    this.socket.emit('subscribe', { channel, auth: { headers: {} } });
  }
}

/** What pusher-js says; where it hears nothing for some time, it goes elsewhere. */
class PusherClient extends Client {
  connect() {
    if (this.gone) return;
    const ws = new WebSocket(`${urls[this.node].replace('http', 'ws')}/app/${pusher.key}?protocol=7&token=${this.token}`,
      { handshakeTimeout: 2000 });
    const on = (event, listener) => ws.on(event, (...args) => this.gone || this.ws !== ws || listener(...args));
    this.ws = ws;
    this.since = now();
    on('error', () => {}); // it closes then
    on('message', (text) => this.take(JSON.parse(text)));
    on('close', (code) => this.close(`closed with ${code}`));
  }

  take({ event, channel, data }) {
    this.heard = now();
    const body = typeof data === 'string' ? JSON.parse(data) : data;
    switch (event) {
      case 'pusher:connection_established':
        this.id = body.socket_id;
        this.timer = setInterval(() => this.ping(), PING);
        this.begin(false);
        break;
      case 'pusher_internal:subscription_succeeded':
        this.joined(channel, (body.presence?.ids ?? []).map((userId) => ({ userId })));
        break;
      case 'pusher:subscription_error':
        this.record('failed', { why: `subscribe: ${body.error}` });
        setTimeout(() => this.up && this.join(channel), RETRY);
        break;
      case 'pusher_internal:member_added': return this.member(channel, body.user_id, true);
      case 'pusher_internal:member_removed': return this.member(channel, body.user_id, false);
      case SAID: return this.said(body);
    }
  }

  ping() {
    if (now() - this.heard > SILENCE) return void this.close('silence');
    this.send('pusher:ping', {});
  }

  send(event, data) {
    this.ws.send(JSON.stringify({ event, data }));
  }

  look() {}

  join(channel) {
    const asked = { channel };
    if (channel.startsWith('presence-')) {
      asked.channel_data = JSON.stringify({ user_id: this.user });
      const text = `${this.id}:${channel}:${asked.channel_data}`;
      asked.auth = `${pusher.key}:${createHmac('sha256', pusher.secret).update(text).digest('hex')}`;
    }
    this.send('pusher:subscribe', asked);
  }

  /** Ends this connection, for whatever reason, and begins the next. */
  close(why) {
    if (this.up) this.record('lost', { why });
    else this.record('refused', { node: this.node, why });
    this.again();
  }

  again() {
    this.stop();
    this.ws.terminate();
    this.ws = null;
    if (!this.pinned) this.node = (this.node + 1) % urls.length;
    this.since = now(); // as the others have it
    setTimeout(() => this.connect(), jitter(50, RETRY));
  }

  stop() {
    this.up = false;
    clearInterval(this.timer);
  }

  goodbye() {
    this.end('left', {});
    this.gone = true;
    this.stop();
    if (this.ws?.readyState === WebSocket.OPEN) this.ws.close(1000);
    else this.ws?.terminate();
  }

  drop(back) {
    this.end('lost', { why: back ? 'dropped' : 'vanished' });
    if (!back) this.gone = true;
    if (back && this.ws) this.again();
    else if (!back) this.stop(), this.ws?.terminate();
  }
}

const DOORS = { native: Client, echo: EchoClient, pusher: PusherClient };

const commands = {
  world({ gateways, users, application }) {
    urls = gateways;
    roster = users;
    pusher = application;
  },
  open(options) {
    const client = new DOORS[options.door](options);
    clients.set(options.client, client);
    client.connect();
  },
  goodbye: ({ client }) => clients.get(client).goodbye(),
  drop: ({ client }) => clients.get(client).drop(true),
  vanish: ({ client }) => clients.get(client).drop(false),
  choose: ({ client, status }) => clients.get(client).choose(status),
  leave: () => clients.forEach((client) => client.gone || client.goodbye()),
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
