// Laravel Echo 2.x with broadcaster 'socket.io', unmodified, beside the gateway's own clients.

import assert from 'node:assert/strict';
import { afterEach, test } from 'node:test';

import Echo from 'laravel-echo';
import { io } from 'socket.io-client';

import { closeAll, eventually, start, tenant, transports } from './client.mjs';

const opened = new Set();

/** A page that uses Echo, with what it heard of its channels. */
function page(token, options = {}) {
  const echo = new Echo({
    broadcaster: 'socket.io',
    client: io,
    host: process.env.GATEWAY_URL,
    transports,
    forceNew: true,
    reconnectionDelay: 20,
    reconnectionDelayMax: 20,
    auth: token === undefined ? {} : { headers: { Authorization: `Bearer ${token}` } },
    ...options,
  });
  opened.add(echo);
  const errors = [];
  echo.connector.socket.on('subscription_error', (channel, status) => errors.push([channel, status]));
  return { echo, errors };
}

/** What a presence channel says to a page. */
function room(echo, name) {
  const heard = [];
  echo.join(name)
    .here((members) => heard.push(['here', members.map((member) => member.name).sort()]))
    .joining((member) => heard.push(['joining', member.name]))
    .leaving((member) => heard.push(['leaving', member.name]))
    .listenForWhisper('typing', (data) => heard.push(['typing', data]));
  return heard;
}

afterEach(async () => {
  for (const echo of opened) echo.disconnect();
  opened.clear();
  await closeAll();
});

test('members come and go, once each, and whisper', async () => {
  const { token } = tenant();
  const alice = page(token('alice', { name: 'Alice' }));
  const seen = room(alice.echo, 'room-1');
  await eventually(() => seen.length === 1, 'alice is here');
  assert.deepEqual(seen, [['here', ['Alice']]]);

  const bob = page(token('bob', { name: 'Bob' }));
  const tab = page(token('bob', { name: 'Bob' }));
  const bobs = room(bob.echo, 'room-1');
  const tabs = room(tab.echo, 'room-1');
  await eventually(() => bobs.length && tabs.length, 'bob is here, twice');
  assert.deepEqual(bobs[0], ['here', ['Alice', 'Bob']]);
  await eventually(() => seen.length === 2, 'alice hears of bob');
  assert.deepEqual(seen[1], ['joining', 'Bob']);

  bob.echo.join('room-1').whisper('typing', { n: 1 });
  await eventually(() => seen.length === 3 && tabs.length === 2, 'the whisper');
  assert.deepEqual(seen[2], ['typing', { n: 1 }]);
  assert.ok(!bobs.some(([event]) => event === 'typing'), 'who whispers hears it not');

  bob.echo.leave('room-1');
  tab.echo.leave('room-1');
  await eventually(() => seen.length === 4, 'alice hears that bob went');
  assert.deepEqual(seen[3], ['leaving', 'Bob']);
});

test('one world: a native client and a page in one channel, and both are online', async () => {
  const { token } = tenant();
  const alice = start({ auth: { token: token('alice', { name: 'Alice' }) } });
  await alice.next('connected');
  const joined = await alice.ask('join-channel', { channel: 'presence-room-1' });
  assert.deepEqual(joined.data.members.map((member) => member.userId), ['alice']);
  const bob = page(token('bob', { name: 'Bob' }));
  const seen = room(bob.echo, 'room-1');
  await eventually(() => seen.length === 1, 'bob is here');
  assert.deepEqual(seen[0], ['here', ['Alice', 'Bob']]);
  assert.equal((await alice.next('user-online')).userId, 'bob');
  assert.deepEqual((await alice.next('member-added')).info, { name: 'Bob' });
  await alice.ask('leave-channel', { channel: 'presence-room-1' });
  await eventually(() => seen.length === 2, 'alice left');
  assert.deepEqual(seen[1], ['leaving', 'Alice']);
  bob.echo.disconnect();
  assert.equal((await alice.next('user-offline')).userId, 'bob');
});

test('who may not be in a channel is told so, and hears nothing', async () => {
  const { token } = tenant();
  const bob = page(token('bob'));
  bob.echo.private('user.alice');
  await eventually(() => bob.errors.length === 1, 'refused');
  assert.deepEqual(bob.errors, [['private-user.alice', 403]]);
  const nobody = page(undefined);
  nobody.echo.channel('news');
  nobody.echo.private('user.alice');
  await eventually(() => nobody.errors.length === 2, 'refused twice');
  assert.deepEqual(nobody.errors.map(([, status]) => status), [403, 403]);
  const forged = page(`${token('bob')}x`);
  forged.echo.private('user.bob');
  await eventually(() => forged.errors.length === 1, 'refused');
  assert.deepEqual(forged.errors, [['private-user.bob', 401]]);
});

test('a page that lost its connection subscribes again, and nobody sees it flicker', async () => {
  const { token } = tenant();
  const alice = page(token('alice', { name: 'Alice' }));
  const seen = room(alice.echo, 'room-1');
  await eventually(() => seen.length === 1, 'alice is here');
  const bob = page(token('bob', { name: 'Bob' }));
  const bobs = room(bob.echo, 'room-1');
  await eventually(() => seen.length === 2 && bobs.length === 1, 'bob is here');
  bob.echo.connector.socket.io.engine.close();
  await eventually(() => bobs.length === 2, 'bob is back');
  assert.deepEqual(bobs[1], ['here', ['Alice', 'Bob']]);
  alice.echo.join('room-1').whisper('typing', 1);
  await eventually(() => bobs.length === 3, 'bob hears again');
  assert.deepEqual(seen, [['here', ['Alice']], ['joining', 'Bob']]);
});
