// The blocks of docs/reference, each run as it stands there with the names that its page has. Run by test_js_reference.py,
// which reads them.

import assert from 'node:assert/strict';
import { afterEach, test } from 'node:test';

import Echo from 'laravel-echo';
import Pusher from 'pusher-js';
import { io } from 'socket.io-client';

import { backend, closeAll, eventually, start, tenant, transports } from './client.mjs';

const { GATEWAY_URL } = process.env;
const BLOCKS = JSON.parse(process.env.BLOCKS);
const opened = new Set();

/** Runs a page's block, with some of its text replaced, and these names; answers what the names in `returns` are then. */
async function run(page, names, { replaced = {}, returns = [] } = {}) {
  let code = BLOCKS[page];
  for (const [text, by] of Object.entries(replaced)) {
    assert.ok(code.includes(text), `${page} has no ${text}`);
    code = code.replaceAll(text, by);
  }
  const body = `return (async () => {\n${code}\nreturn { ${returns.join(', ')} };\n})()`;
  return new Function(...Object.keys(names), body)(...Object.values(names));
}

afterEach(async () => {
  for (const client of opened) client.disconnect();
  opened.clear();
  await closeAll();
});

test('notifications.md: what waited is shown once, and acknowledged', async () => {
  const users = tenant();
  const { name } = users;
  const notify = (message) =>
    backend('POST', `/api/notifications?tenant=${name}`, { userId: 'alice', event: 'notification', data: { message } });
  assert.equal((await notify('waited')).method, 'queued');
  const shown = [];
  const names = { show: ({ message }) => shown.push(message), seen: new Set() };
  const alice = start({ auth: { token: users.token('alice') } });
  await run('notifications.md', { ...names, socket: alice.socket });
  await eventually(() => shown.length === 1);
  assert.equal((await notify('now')).method, 'realtime');
  await eventually(() => shown.length === 2);
  assert.deepEqual(shown, ['waited', 'now']);
  const again = await users.connect('alice');
  await again.ask('heartbeat');
  assert.deepEqual(again.payloads('notification'), []);
});

test('messages.md: one writes, reads and types, and hears the other', async () => {
  const users = tenant();
  const [alice, bob] = [await users.connect('alice', { name: 'Alice' }), await users.connect('bob')];
  await bob.ask('join-conversation', { conversationId: 'alice-bob' });
  const before = await bob.ask('send-message', { recipientId: 'alice', content: 'before' });
  const shown = [];
  await run('messages.md', { socket: alice.socket, show: (message) => shown.push(message.content) });
  assert.equal((await bob.next('new-message')).content, 'hello');
  assert.equal((await bob.next('message-read')).message_id, before.data.message.id);
  assert.equal((await bob.next('user-typing')).is_typing, true);
  await bob.ask('send-message', { recipientId: 'alice', content: 'after' });
  await eventually(() => shown.includes('after'));
});

test('watching.md: one hears of those who are watched, and of nobody else', async () => {
  const users = tenant();
  const alice = await users.connect('alice');
  await users.connect('bob');
  const applied = [];
  await run('watching.md', { socket: alice.socket, apply: ({ userId, status }) => applied.push([userId, status]) });
  assert.deepEqual(applied, [['bob', 'online'], ['carol', 'offline']]);
  await users.connect('dave');
  await users.connect('carol');
  await eventually(() => alice.about('carol').length);
  assert.deepEqual([alice.about('dave'), alice.about('carol')], [[], ['user-online']]);
});

test('recovery.md: a page whose connection was lost asks for nothing anew', async () => {
  const users = tenant();
  const alice = start({ auth: { token: users.token('alice') } });
  const applied = [];
  await run('recovery.md', { socket: alice.socket, apply: ({ userId }) => applied.push(userId) });
  await eventually(() => applied.length);
  assert.deepEqual(applied, ['alice']);
  alice.lose();
  await eventually(() => !alice.socket.connected);
  await users.connect('bob');
  await alice.next('connected', 2);
  await alice.next('user-online');
  await alice.ask('heartbeat');
  assert.equal(alice.socket.recovered, true);
  assert.deepEqual([applied, alice.about('bob')], [['alice'], ['user-online']]);
});

test('sessions.md: what a page says of itself is explained', async () => {
  const { name, token } = tenant();
  const connect = (path, options) => {
    const socket = io(GATEWAY_URL + path, { forceNew: true, transports, ...options });
    opened.add(socket);
    return socket;
  };
  const { socket } = await run('sessions.md', { io: connect, token: token('alice') }, { returns: ['socket'] });
  await eventually(() => socket.connected);
  await socket.emitWithAck('check-user-status', { userId: 'alice' });
  const { connections } = await backend('GET', `/api/users/alice/explain?tenant=${name}`);
  assert.deepEqual(connections.map(({ page, meta }) => [page, meta]), [['chat', { page: 'chat' }]]);
});

test('echo.md: two pages in a room of Laravel Echo hear of each other', async () => {
  const host = { 'https://presence.example': GATEWAY_URL };
  const { name, token } = tenant();
  const join = async (user) => {
    const heard = { show: [], add: [], remove: [], note: [], read: [] };
    const names = Object.fromEntries(Object.entries(heard).map(([event, list]) => [event, (value) => list.push(value)]));
    const given = { ...names, Echo, io, token: token(user, { name: user.toUpperCase() }) };
    const { echo } = await run('echo.md', given, { replaced: host, returns: ['echo'] });
    opened.add(echo);
    await eventually(() => heard.show.length);
    return { echo, heard };
  };
  const alice = await join('alice');
  assert.deepEqual(alice.heard.show[0].map((member) => member.name), ['ALICE']);
  const bob = await join('bob');
  await eventually(() => alice.heard.add.length);
  assert.equal(alice.heard.add[0].name, 'BOB');
  bob.echo.join('room.1').whisper('typing', { typing: true });
  await eventually(() => alice.heard.note.length);
  await backend('POST', `/api/channels/presence-room.1/events?tenant=${name}`, { event: 'message.sent', data: { n: 1 } });
  await eventually(() => alice.heard.read.length && bob.heard.read.length);
  bob.echo.disconnect();
  await eventually(() => alice.heard.remove.length);
  assert.equal(alice.heard.remove[0].name, 'BOB');
});

test('pusher.md: pusher-js and Echo connect to the host that they are given', async () => {
  const { hostname, port } = new URL(GATEWAY_URL);
  const made = [];
  const noted = (of) => class extends of {
    constructor(...given) {
      super(...given);
      opened.add(this);
      made.push(this);
    }
  };
  const here = { 'presence.example': hostname, 'wsPort: 443': `wsPort: ${port}`, 'forceTLS: true': 'forceTLS: false' };
  await run('pusher.md', { Pusher: noted(Pusher), Echo: noted(Echo) }, { replaced: here });
  const clients = made.filter((client) => client instanceof Pusher);
  assert.equal(clients.length, 2); // Echo has one of its own
  await eventually(() => clients.every((client) => client.connection.state === 'connected'));
});
