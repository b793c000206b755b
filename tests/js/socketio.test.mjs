// The gateway as socket.io-client sees it, over the transports named in TRANSPORTS.
// Run by test_js_client.py, which starts the gateway.

import assert from 'node:assert/strict';
import { afterEach, test as nodeTest } from 'node:test';

import { backend, closeAll, eventually, sign, start, tenant, transports } from './client.mjs';

const TIMESTAMP = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/;
const USER_STATUS = ['connectedAt', 'lastActive', 'online', 'status', 'statusText', 'userId', 'version'];

const test = (name, body) => nodeTest(name, { timeout: 20000 }, body);
const GRACE = Number(process.env.GRACE) * 1000; // milliseconds
const keys = (value) => Object.keys(value).sort();

afterEach(closeAll);

// Being let in

const places = {
  'auth.token': (token) => ({ auth: { token } }),
  'the Authorization header': (token) => ({ extraHeaders: { Authorization: `Bearer ${token}` } }),
  '?token=': (token) => ({ query: { token } }),
};
for (const [place, options] of Object.entries(places)) {
  test(`a token in ${place} lets its user in`, async () => {
    const client = start(options(tenant().token('alice')));
    const connected = await client.next('connected');
    assert.deepEqual(keys(connected), ['reconnect', 'socketId', 'timestamp', 'userId']);
    assert.equal(connected.userId, 'alice');
    assert.equal(connected.socketId, client.socket.id);
    assert.equal(connected.reconnect, false);
    assert.match(connected.timestamp, TIMESTAMP);
    assert.equal(client.heard[0][0], 'connected');
  });
}

test('the connection ends up on the best transport that both sides may use', async () => {
  const client = start({ auth: { token: tenant().token('alice') } });
  const used = new Set();
  client.socket.io.on('open', () => used.add(client.socket.io.engine.transport.name));
  await client.next('connected');
  await eventually(() => used.add(client.socket.io.engine.transport.name).has(transports.at(-1)), 'the upgrade');
  assert.deepEqual([...used], transports);
  assert.equal((await client.ask('heartbeat')).event, 'heartbeat-ack');
});

const refusals = {
  TOKEN_MISSING: {},
  TOKEN_INVALID: { auth: { token: 'nonsense' } },
  TOKEN_EXPIRED: { auth: { token: sign({ sub: 'alice', exp: 1 }) } },
};
for (const [code, options] of Object.entries(refusals)) {
  test(`a refusal is a connect_error with the code ${code}, and is not tried again`, async () => {
    const client = start(options);
    const error = await client.next('connect_error');
    assert.ok(error instanceof Error);
    assert.deepEqual(error.data, { code, message: error.message });
    assert.notEqual(error.message, '');
    assert.equal(client.socket.active, false);
  });
}

test('a namespace that is none is refused', async () => {
  const client = start({ auth: { token: tenant().token('alice') } });
  await client.next('connected');
  const stranger = client.socket.io.socket('/nowhere');
  const error = await new Promise((resolve) => { stranger.on('connect_error', resolve).connect(); });
  assert.equal(error.message, 'Invalid namespace');
  assert.equal(client.socket.connected, true);
});

// Requests

test('check-user-status tells of one user, and of one never seen', async () => {
  const alice = await tenant().connect('alice');
  const { event, data } = await alice.ask('check-user-status', { userId: 'alice' });
  assert.equal(event, 'user-status');
  assert.deepEqual(keys(data), [...USER_STATUS, 'timestamp'].sort());
  const { userId, online, status, statusText, version } = data;
  assert.deepEqual({ userId, online, status, statusText, version },
    { userId: 'alice', online: true, status: 'online', statusText: null, version: 1 });
  for (const time of [data.connectedAt, data.lastActive, data.timestamp]) assert.match(time, TIMESTAMP);

  const never = (await alice.ask('check-user-status', { userId: 'nobody' })).data;
  assert.deepEqual([never.online, never.status, never.lastActive, never.connectedAt], [false, 'offline', null, null]);
});

test('check-users-status answers in the order asked, repeats included', async () => {
  const here = tenant();
  const alice = await here.connect('alice');
  await here.connect('bob');
  const { event, data } = await alice.ask('check-users-status', { userIds: ['nobody', 'bob', 'alice', 'bob'] });
  assert.equal(event, 'users-status');
  assert.deepEqual(data.statuses.map(({ userId, online }) => [userId, online]),
    [['nobody', false], ['bob', true], ['alice', true], ['bob', true]]);
  assert.deepEqual(keys(data.statuses[0]), USER_STATUS);
  assert.deepEqual((await alice.ask('check-users-status', { userIds: [] })).data.statuses, []);
});

test('get-online-users gives everyone page by page, each once, with what their tokens say', async () => {
  const here = tenant();
  const users = ['ann', 'ben', 'cat', 'dan', 'eve'];
  const clients = await Promise.all(users.map((user) => here.connect(user, { name: `${user}!`, role: 'guest' })));
  const found = [];
  let cursor = null;
  let pages = 0;
  do {
    const { event, data } = await clients[0].ask('get-online-users', cursor ? { limit: 2, cursor } : { limit: 2 });
    assert.equal(event, 'online-users');
    assert.equal(data.count, users.length);
    found.push(...data.users);
    cursor = data.nextCursor;
    pages += 1;
  } while (cursor);
  assert.equal(pages, 3);
  assert.deepEqual(found.map(({ userId, name, role }) => [userId, name, role]), users.map((user) => [user, `${user}!`, 'guest']));

  const all = (await clients[0].ask('get-online-users')).data;
  assert.deepEqual(all.users.map((user) => user.userId), users);
  assert.equal(all.nextCursor, null);
});

test('heartbeat is acknowledged, with and without meta', async () => {
  const alice = await tenant().connect('alice');
  for (const payload of [[], [{ meta: { page: 'dashboard' } }]]) {
    const { event, data } = await alice.ask('heartbeat', ...payload);
    assert.equal(event, 'heartbeat-ack');
    assert.deepEqual(keys(data), ['lastActive', 'timestamp']);
    assert.match(data.lastActive, TIMESTAMP);
  }
});

test("refresh-token goes on with a newer token, and with nobody else's", async () => {
  const here = tenant();
  const alice = await here.connect('alice');
  const exp = Math.floor(Date.now() / 1000) + 7200;
  const renewed = await alice.ask('refresh-token', { token: here.token('alice', { exp }) });
  assert.deepEqual(renewed, { event: 'token-refreshed', data: { expiresAt: new Date(exp * 1000).toISOString() } });

  assert.equal((await alice.ask('refresh-token', { token: here.token('bob') })).error.code, 'FORBIDDEN');
  assert.equal((await alice.ask('refresh-token', { token: tenant().token('alice') })).error.code, 'FORBIDDEN');
  assert.equal((await alice.ask('refresh-token', { token: 'nonsense' })).error.code, 'INVALID_PAYLOAD');
  assert.equal(alice.socket.connected, true);
});

test('a token that runs out is told, and a refresh in time keeps the connection', async () => {
  const here = tenant();
  const exp = Math.ceil(Date.now() / 1000) + 1; // 1 to 2 seconds: exp is in whole ones
  const alice = await here.connect('alice', { exp });
  assert.match((await alice.next('token-expired')).timestamp, TIMESTAMP);
  assert.equal((await alice.ask('refresh-token', { token: here.token('alice') })).event, 'token-refreshed');
  assert.equal(alice.payloads('disconnect').length, 0);
});

test('a bad request is answered with an error, and costs nothing else', async () => {
  const alice = await tenant().connect('alice');
  const bad = [
    ['check-user-status', undefined, 'INVALID_PAYLOAD'],
    ['check-user-status', { userId: 7 }, 'INVALID_PAYLOAD'],
    ['check-user-status', { userId: '' }, 'INVALID_PAYLOAD'],
    ['check-user-status', 'alice', 'INVALID_PAYLOAD'],
    ['check-user-status', null, 'INVALID_PAYLOAD'],
    ['check-users-status', { userIds: Array(1001).fill('a') }, 'INVALID_PAYLOAD'],
    ['get-online-users', { limit: 0 }, 'INVALID_PAYLOAD'],
    ['get-online-users', { cursor: '*' }, 'INVALID_PAYLOAD'],
    ['heartbeat', { meta: { much: 'x'.repeat(3000) } }, 'INVALID_PAYLOAD'],
    ['heartbeat', { meta: { raw: Buffer.from([1, 2, 3]) } }, 'INVALID_PAYLOAD'],
    ['make-coffee', {}, 'UNKNOWN_EVENT'],
  ];
  for (const [event, payload, code] of bad) {
    const answer = await alice.ask(event, ...(payload === undefined ? [] : [payload]));
    assert.deepEqual([answer.event, answer.error?.code], ['error', code], JSON.stringify([event, payload]));
    assert.notEqual(answer.error.message, '');
  }
  assert.equal((await alice.ask('heartbeat')).event, 'heartbeat-ack');
  assert.deepEqual(alice.heard.map(([event]) => event), ['connected']);
});

test('a bad request without an acknowledgement raises an exception event', async () => {
  const alice = await tenant().connect('alice');
  alice.socket.emit('check-user-status', { userId: [] });
  alice.socket.emit('make-coffee');
  await alice.next('exception', 2);
  assert.deepEqual(alice.payloads('exception').map(({ event, code }) => [event, code]),
    [['check-user-status', 'INVALID_PAYLOAD'], ['make-coffee', 'UNKNOWN_EVENT']]);
});

test('many requests at once are answered each with its own', async () => {
  const alice = await tenant().connect('alice');
  const users = Array.from({ length: 50 }, (_, n) => `user-${n}`);
  const answers = await Promise.all(users.map((userId) => alice.ask('check-user-status', { userId })));
  assert.deepEqual(answers.map(({ data }) => data.userId), users);
});

// Presence

test('others hear that a user came and, at once, that they said goodbye', async () => {
  const here = tenant();
  const alice = await here.connect('alice');
  const bob = await here.connect('bob', { name: 'Bob', avatar: 'https://example.test/bob.png' });
  const online = await alice.next('user-online');
  const { timestamp, ...rest } = online;
  assert.deepEqual(rest, {
    userId: 'bob', online: true, status: 'online', version: 1, name: 'Bob', avatar: 'https://example.test/bob.png',
  });
  assert.match(timestamp, TIMESTAMP);

  const left = Date.now();
  bob.socket.disconnect();
  const offline = await alice.next('user-offline');
  assert.ok(Date.parse(offline.timestamp) - left < GRACE, 'a goodbye takes no grace');
  assert.deepEqual(keys(offline), ['lastActive', 'online', 'status', 'timestamp', 'userId', 'version']);
  assert.deepEqual([offline.userId, offline.online, offline.status, offline.version], ['bob', false, 'offline', 2]);
  assert.deepEqual(bob.about('bob'), [], "one's own coming is nobody's news");
});

test('the same user in many windows is one user', async () => {
  const here = tenant();
  const watcher = await here.connect('watcher');
  const windows = await Promise.all([1, 2, 3].map(() => here.connect('alice')));
  assert.equal((await watcher.ask('get-online-users')).data.count, 2);
  for (const window of windows.slice(1)) {
    window.socket.disconnect();
    assert.equal((await watcher.ask('check-user-status', { userId: 'alice' })).data.online, true);
  }
  windows[0].socket.disconnect();
  await watcher.next('user-offline');
  assert.deepEqual(watcher.about('alice'), ['user-online', 'user-offline']);
});

test('nobody hears or sees a user of another tenant', async () => {
  const [here, there] = [tenant(), tenant()];
  const alice = await here.connect('alice');
  await there.connect('mallory');
  await here.connect('bob');
  await eventually(() => alice.about('bob').length, "bob's user-online"); // mallory's would have come before it
  assert.deepEqual(alice.about('mallory'), []);
  assert.equal((await alice.ask('check-user-status', { userId: 'mallory' })).data.online, false);
  assert.equal((await alice.ask('get-online-users')).data.count, 2);
});

test('a backend closes all connections of a user, who is told that the server meant it', async () => {
  const here = tenant();
  const watcher = await here.connect('watcher');
  const windows = [await here.connect('alice'), await here.connect('alice')];
  const closed = await backend('DELETE', `/api/users/alice/connections?tenant=${here.name}`);
  assert.deepEqual(closed, { closed: 2 });
  for (const window of windows) {
    assert.equal(await window.next('disconnect'), 'io server disconnect');
    assert.equal(window.socket.active, false, 'it does not reconnect by itself');
  }
  await watcher.next('user-offline');
  assert.deepEqual(watcher.about('alice'), ['user-online', 'user-offline']);

  windows[0].socket.connect();
  assert.equal((await windows[0].next('connected', 2)).userId, 'alice');
});

// Watch lists

test('a client that watches hears of those it watches, after their statuses, and of nobody else', async () => {
  const here = tenant();
  const alice = await here.connect('alice');
  const bob = await here.connect('bob');
  await alice.next('user-online');
  const { event, data } = await alice.ask('watch-users', { userIds: ['bob', 'carol'] });
  assert.equal(event, 'watching');
  assert.deepEqual(keys(data), ['statuses', 'timestamp']);
  assert.deepEqual(data.statuses.map(({ userId, version }) => [userId, version]), [['bob', 1], ['carol', 0]]);
  assert.deepEqual(keys(data.statuses[0]), USER_STATUS);

  await here.connect('eve');
  bob.socket.disconnect();
  await alice.next('user-offline');
  await here.connect('carol');
  await alice.next('user-online', 2);
  assert.deepEqual(await alice.ask('unwatch-users', { userIds: ['carol', 'nobody'] }), { event: 'unwatched', data: { count: 1 } });
  assert.deepEqual(await alice.ask('unwatch-users'), { event: 'unwatched', data: { count: 1 } });
  await here.connect('bob');
  await alice.ask('heartbeat');
  assert.deepEqual(alice.about('eve'), []);
  assert.deepEqual(alice.about('bob'), ['user-online', 'user-offline']);
  assert.deepEqual(alice.about('carol'), ['user-online']);
});
