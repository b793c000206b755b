// Several tabs of one browser: they share one connection, and hand it over.

import { afterEach, beforeEach, expect, test, vi } from 'vitest';

import { makeToken, makeWorld, settle, statusOf } from './world.mjs';

let world;
let server;

beforeEach(() => {
  world = makeWorld({ sharing: true });
  server = world.server;
});

afterEach(() => {
  world.end();
  expect(world.early).toEqual([]);
});

async function open(options) {
  const presence = world.open(options);
  await settle(10);
  expect(presence.state).toBe('connected');
  return presence;
}

test('tabs of one user have one connection, and all hear by it', async () => {
  const [one, other] = [await open(), await open()];
  expect(server.sockets.length).toBe(1);
  one.watch(['a', 'b']);
  other.watch(['b', 'c']);
  await settle(10);
  expect([...server.socket.watched].sort()).toEqual(['a', 'b', 'c']);
  expect(server.asked('watch-users').slice(1)).toEqual([{ userIds: ['a', 'b'] }, { userIds: ['c'] }]);
  server.change('b', 4);
  await settle(0);
  expect([one, other].map((tab) => tab.get('b').version)).toEqual([4, 4]);
  expect([one.get('c'), other.get('a')]).toEqual([undefined, undefined]);
  const third = await open();
  third.watch('b');
  await settle(0);
  expect(third.get('b').version).toBe(4); // which nobody had to be asked for
});

test('tabs of different users, or tenants, or that do not want to, have connections of their own', async () => {
  await open();
  await open({ getToken: () => makeToken('other') });
  await open({ getToken: () => makeToken('me', { tenant: 'other' }) });
  await open({ share: false });
  await open({ getToken: () => 'opaque' });
  await open({ path: '/other/' });
  expect(server.live.length).toBe(6);
});

test('what one tab watches no more goes when no other does', async () => {
  const [one, other] = [await open(), await open()];
  one.watch('a');
  const unwatch = other.watch(['a', 'b']);
  await settle(10);
  unwatch();
  await settle(5000);
  expect([...server.socket.watched]).toEqual(['a']);
});

test('what a follower asks is answered, with its error where there is one', async () => {
  await open();
  const follower = await open();
  await Promise.all([follower.setStatus('busy'), settle(10)]);
  expect(server.asked('set-status').length).toBe(1);
  server.answers['set-status'] = () => ({ event: 'error', error: { code: 'RATE_LIMITED', message: 'slow', retryAfter: 3 } });
  const refused = expect(follower.setStatus('dnd')).rejects.toMatchObject({ code: 'RATE_LIMITED', retryAfter: 3, name: 'PresenceError' });
  await settle(10);
  await refused;
});

test('when the leader closes another leads, the user does not leave, and no change is missed', async () => {
  const [leader, one, other] = [await open(), await open(), await open()];
  one.watch('a');
  other.watch('b');
  await settle(10);
  leader.close();
  server.users.set('a', statusOf('a', 6)); // while nobody hears
  await settle(10);
  expect(server.sockets.length).toBe(2);
  expect(server.sockets[0].goodbye).toBe(false);
  expect(server.live.length).toBe(1);
  expect(one.get('a').version).toBe(6);
  expect(one.changes.filter(([userId]) => userId === 'a')).toEqual([['a', 0], ['a', 6]]);
  expect(other.changes.filter(([userId]) => userId === 'b')).toEqual([['b', 0]]);
  expect(other.state).toBe('connected');
  one.close();
  await settle(10);
  other.close();
  expect(server.sockets.map((socket) => socket.goodbye)).toEqual([false, false, true]);
  await settle(0);
  expect([...world.locks.held.keys(), ...world.locks.waiting, ...world.channels]).toEqual([]);
});

test('when the leader crashes another leads, and what was asked of it is asked again', async () => {
  await open();
  const follower = await open();
  follower.watch('a');
  await settle(10);
  server.mute = true;
  const asked = follower.setStatus('busy');
  await settle(5);
  server.mute = false;
  world.crashLeader();
  server.users.set('a', statusOf('a', 3));
  await settle(10);
  await asked;
  expect(server.asked('set-status').length).toBe(2);
  expect(follower.get('a').version).toBe(3);
  expect(follower.states).toEqual(['connecting', 'connected', 'reconnecting', 'connected']);
});

test('what a tab watched that crashed is watched no more', async () => {
  await open();
  const follower = await open();
  follower.watch('a');
  await settle(10);
  const [leader] = world.leaders;
  const channel = [...world.channels].find((each) => each.id !== leader);
  world.silence(channel);
  const lock = [...world.locks.held.keys()].find((name) => name.endsWith(` tab ${channel.id}`));
  world.locks.release(lock, world.locks.held.get(lock)[0]);
  await settle(5000);
  expect([...server.socket.watched]).toEqual([]);
});

test('the lead is taken from a tab that sleeps, which follows when it wakes', async () => {
  const leader = await open();
  const follower = await open();
  follower.watch(['a', 'b']);
  leader.watch('a');
  await settle(10);
  const sleeping = [...world.channels].find((channel) => channel.id === world.leaders[0]);
  sleeping.asleep = true;
  for (let seconds = 0; seconds < 60 && world.leaders.length < 2; seconds += 1) await settle(1000);
  expect(world.leaders.length).toBe(2);
  await settle(10);
  expect(server.live.length).toBe(1);
  expect(server.live[0]).toBe(server.sockets[1]);
  server.change('a', 8);
  await settle(0);
  expect(follower.get('a').version).toBe(8);
  sleeping.wake();
  await settle(30_000);
  expect(leader.get('a').version).toBe(8);
  expect(leader.state).toBe('connected');
  expect(server.live.length).toBe(1);
  expect(world.locks.waiting.length).toBe(2); // for the lead, and for the end of the other tab
  follower.close();
  await settle(10);
  expect([...server.live[0].watched]).toEqual(['a']);
  expect(server.sockets.every((socket) => !socket.goodbye)).toBe(true);
});

test.each(['hidden', 'closed'])('a tab that is %s takes nothing', async (how) => {
  await open();
  const [sleeping] = world.channels;
  sleeping.asleep = true;
  const other = world.open();
  await settle(10);
  if (how === 'hidden') world.document.show(false);
  else other.close();
  await settle(60_000);
  expect(world.leaders.length).toBe(1);
});

test('one that does not lead any more is not heard', async () => {
  await open();
  const follower = await open();
  follower.watch('a');
  await settle(10);
  const [, channel] = world.channels;
  channel.take({ type: 'statuses', from: 'one', term: 1, statuses: [statusOf('a', 99)] });
  channel.take({ type: 'lead', from: 'one', term: 1, state: 'reconnecting' });
  channel.take({ type: 'statuses', from: 'one', term: 1, statuses: [statusOf('a', 99)] });
  await settle(10);
  expect(follower.states).toEqual(['connecting', 'connected']);
  expect(follower.get('a').version).toBe(0);
});

test('a lead that answers is not taken', async () => {
  await open();
  await open();
  await settle(600_000);
  expect(world.leaders.length).toBe(1);
  expect(server.sockets.length).toBe(1);
});

test('two visible tabs are one heartbeat', async () => {
  await open();
  await open();
  const before = server.asked('heartbeat').length;
  await settle(100_000);
  expect(server.asked('heartbeat').length - before).toBeGreaterThanOrEqual(3);
  expect(server.asked('heartbeat').length - before).toBeLessThanOrEqual(5);
});

test('when the token of the leader is refused another tab tries its own', async () => {
  let valid = true;
  const poor = await open({ getToken: () => makeToken('me', { jti: 'poor' }) });
  const rich = await open({ getToken: () => makeToken('me', { jti: 'rich' }) });
  server.refuse = (token) => (valid || atob(token.split('.')[1]).includes('rich') ? null : { code: 'TOKEN_INVALID' });
  valid = false;
  server.socket.lose();
  await settle(100);
  expect(poor.state).toBe('refused');
  expect(rich.state).toBe('connected');
  valid = true;
  poor.connect();
  await settle(10);
  expect(poor.state).toBe('connected');
  expect(server.live.length).toBe(1);
});

test('a page that is left hands the lead over', async () => {
  const [leader, follower] = [await open(), await open()];
  leader.watch('a');
  follower.watch('a');
  await settle(10);
  world.window.dispatchEvent(new Event('pagehide')); // of both, since they have one window here
  world.window.dispatchEvent(new Event('pageshow'));
  await settle(10);
  expect(server.live.length).toBe(1);
  expect([leader.state, follower.state]).toEqual(['connected', 'connected']);
  expect(server.sockets.every((socket) => !socket.goodbye)).toBe(true);
});

test('a tab that closes leaves nothing behind', async () => {
  const [leader, follower] = [await open(), await open()];
  const third = await open();
  third.watch('a');
  third.close();
  await settle(5000);
  expect(server.socket.watched.size).toBe(0);
  expect([world.channels.size, world.locks.held.size, world.locks.waiting.length]).toEqual([2, 3, 2]);
  leader.close();
  follower.close();
  await settle(20_000);
  expect([world.channels.size, world.locks.held.size, world.locks.waiting.length]).toEqual([0, 0, 0]);
  expect(vi.getTimerCount()).toBe(0);
});

test.each(Array.from({ length: 30 }, (_, turns) => turns))('one that is closed %i turns after it began leaves nothing', async (turns) => {
  const presence = world.open();
  for (let turn = 0; turn < turns; turn += 1) await Promise.resolve();
  presence.close();
  await settle(100);
  expect(server.live).toEqual([]);
  expect([...world.locks.held.keys()]).toEqual([]);
  expect(world.locks.waiting).toEqual([]);
  expect(world.channels.size).toBe(0);
});
