// One tab with a connection of its own: what is asked, what is known, who is told of it.

import { afterEach, beforeEach, expect, test, vi } from 'vitest';

import { PresenceClient } from '../../../static/presence-client.js';
import { makeToken, makeWorld, settle, statusOf } from './world.mjs';

let world;
let server;

beforeEach(() => {
  world = makeWorld();
  server = world.server;
});

afterEach(() => world.end());

async function connected(options) {
  const presence = world.open(options);
  await settle(10);
  expect(presence.state).toBe('connected');
  return presence;
}

// Options

test('options that cannot be are refused with what to do', () => {
  expect(() => new PresenceClient({ url: 'http://gateway' })).toThrow(/takes getToken/);
  expect(() => new PresenceClient({ url: 'gateway', getToken: () => '' })).toThrow(/takes url/);
  expect(() => new PresenceClient({ url: 'http://gateway', getToken: () => '', heartbeat: 0 })).toThrow(/takes heartbeat/);
});

test('what is no user id is refused', async () => {
  const presence = await connected();
  for (const userId of ['', 7, null, 'a\u0007b', 'x'.repeat(129), '\ud800']) expect(() => presence.watch(userId)).toThrow(TypeError);
  presence.watch(['😀'.repeat(128)]);
  expect(() => presence.on('changes', () => {})).toThrow(TypeError);
});

test('it connects to the namespace, with the path and the token', async () => {
  await connected({ url: 'http://gateway/', path: '/here/', getToken: () => 'opaque' });
  expect(server.socket.url).toBe('http://gateway/ws/messages');
  expect(server.socket.options).toMatchObject({ path: '/here/', forceNew: true });
  expect(server.socket.tokens).toEqual(['opaque']);
});

test("the page's own io is found", async () => {
  vi.stubGlobal('io', server.io);
  await connected({ io: undefined });
});

test('connect() twice is one connection, and close() says goodbye', async () => {
  const presence = await connected();
  presence.connect();
  await settle(10);
  expect(server.sockets.length).toBe(1);
  presence.close();
  expect(server.socket.goodbye).toBe(true);
  expect(presence.states).toEqual(['connecting', 'connected', 'closed']);
  presence.connect();
  await settle(10);
  expect(presence.states.slice(3)).toEqual(['connecting', 'connected']);
});

test('a closed client hears nothing of its page', async () => {
  const heard = [vi.spyOn(world.document, 'addEventListener'), vi.spyOn(world.window, 'addEventListener')];
  const ended = [vi.spyOn(world.document, 'removeEventListener'), vi.spyOn(world.window, 'removeEventListener')];
  const presence = await connected();
  presence.close();
  expect(heard.map((spy) => spy.mock.calls.length)).toEqual([3, 3]);
  expect(ended.map((spy) => spy.mock.calls)).toEqual(heard.map((spy) => spy.mock.calls));
});

test('a client that is closed while it has no token stays so', async () => {
  const presence = world.open({ getToken: vi.fn(() => makeToken()).mockRejectedValueOnce(new Error('no network')) });
  await settle(10);
  presence.close();
  await settle(100_000);
  expect(server.sockets).toEqual([]);
  expect(presence.state).toBe('closed');
});

// Watching

test('before anything else it asks to hear of nobody', async () => {
  await connected();
  expect(server.asked('watch-users')).toEqual([{ userIds: [] }]);
});

test('what is watched in one task is one request', async () => {
  const presence = await connected();
  presence.watch('a');
  const unwatch = presence.watch(['b', 'c', 'b']);
  await settle(10);
  expect(server.asked('watch-users').slice(1)).toEqual([{ userIds: ['a', 'b', 'c'] }]);
  unwatch();
  await settle(5000);
  expect(server.asked('unwatch-users')).toEqual([{ userIds: ['b', 'c'] }]);
});

test('what comes and goes in one task is no request', async () => {
  const presence = await connected();
  const unwatch = presence.watch('a');
  await settle(10);
  unwatch();
  presence.watch('b')();
  presence.watch('a');
  await settle(10_000);
  expect(server.asked('watch-users').length).toBe(2);
  expect(server.asked('unwatch-users')).toEqual([]);
  expect(presence.get('a')).toBeDefined();
});

test('a user is watched until the last has ended it, each of them once', async () => {
  const presence = await connected();
  const [one, other] = [presence.watch('a'), presence.watch('a')];
  await settle(10);
  one();
  one();
  await settle(10_000);
  expect(server.asked('unwatch-users')).toEqual([]);
  expect(presence.get('a')).toBeDefined();
  other();
  await settle(10_000);
  expect(server.asked('unwatch-users')).toEqual([{ userIds: ['a'] }]);
  expect(presence.get('a')).toBeUndefined();
});

test('who is shown again soon is not asked for again, and is as they are by then', async () => {
  const presence = await connected();
  const unwatch = presence.watch('a');
  await settle(10);
  unwatch();
  await settle(500);
  server.change('a', 7);
  expect(presence.get('a')).toBeUndefined();
  presence.watch('a');
  await settle(0);
  expect(presence.get('a').version).toBe(7);
  await settle(10_000);
  expect(server.requests.map(([event]) => event).filter((event) => event !== 'heartbeat')).toEqual(['watch-users', 'watch-users']);
});

test('a thousand at a time', async () => {
  const presence = await connected();
  presence.watch(Array.from({ length: 2300 }, (_, number) => `user-${number}`));
  await settle(50);
  expect(server.asked('watch-users').map(({ userIds }) => userIds.length)).toEqual([0, 1000, 1000, 300]);
});

test('as many as the server lets, which is said once, and more when there is room', async () => {
  server.limit = 5;
  const presence = await connected();
  const unwatch = presence.watch(['a', 'b', 'c']);
  presence.watch(['d', 'e', 'f', 'g']);
  await settle(100);
  expect([...server.socket.watched]).toEqual(['a', 'b', 'c', 'd', 'e']);
  expect(presence.errors).toEqual(['INVALID_PAYLOAD']);
  const asked = server.requests.length;
  presence.watch('h');
  await settle(100);
  expect(server.requests.length).toBe(asked);
  unwatch();
  await settle(100); // at once: there is somebody to take their place
  expect([...server.socket.watched]).toEqual(['d', 'e', 'f', 'g', 'h']);
  expect(server.requests.slice(asked)).toEqual([
    ['unwatch-users', { userIds: ['a', 'b', 'c'] }],
    ['watch-users', { userIds: ['f', 'g', 'h'] }],
  ]);
  expect(presence.errors).toEqual(['INVALID_PAYLOAD']);
});

test('a server that lets nobody be watched is not asked again and again', async () => {
  server.limit = 0;
  const presence = world.open();
  presence.watch('a');
  await settle(10_000);
  expect(server.asked('watch-users').length).toBe(1);
  expect(presence.errors).toEqual(['INVALID_PAYLOAD']);
});

test('what was refused on one connection is not held against the next', async () => {
  const presence = await connected();
  server.limit = 2;
  presence.watch(['a', 'b', 'c', 'd']);
  await settle(2);
  server.limit = Infinity;
  await settle(100);
  server.socket.lose();
  await settle(100);
  expect(server.asked('watch-users').at(-1)).toEqual({ userIds: ['a', 'b', 'c', 'd'] });
  server.limit = 2;
  server.socket.lose();
  await settle(100);
  expect(server.socket.watched.size).toBe(2);
  server.limit = Infinity;
  server.socket.lose();
  await settle(100);
  presence.watch('e');
  await settle(100);
  expect(server.socket.watched.size).toBe(5);
});

test('each who is shown no more has their time to come back', async () => {
  const presence = await connected();
  presence.watch('b');
  presence.watch('a')();
  const again = presence.watch('a');
  await settle(10);
  again();
  await settle(500);
  const third = presence.watch('a');
  await settle(3000);
  third();
  await settle(500);
  expect(server.asked('unwatch-users')).toEqual([]);
  await settle(2000);
  expect(server.asked('unwatch-users').length).toBe(1);
  const fourth = presence.watch('c');
  await settle(10);
  fourth();
  await settle(500);
  expect(server.asked('unwatch-users').length).toBe(1);
});

test('of who is watched no more nothing is known', async () => {
  const presence = await connected();
  presence.watch('a')();
  const unwatch = presence.watch('a');
  await settle(10);
  unwatch();
  await settle(5000);
  server.socket.hear('user-status-changed', statusOf('b', 3)); // by a server that tells of everyone
  server.mute = true;
  presence.watch(['a', 'b']);
  await settle(0);
  expect([presence.get('a'), presence.get('b')]).toEqual([undefined, undefined]);
});

test('a server that is asked too often is asked when it says', async () => {
  const presence = await connected();
  const limited = vi.fn(() => ({ event: 'error', error: { code: 'RATE_LIMITED', message: 'slow', retryAfter: 7 } }));
  server.answers['watch-users'] = limited;
  presence.watch('a');
  await settle(6900);
  expect(limited).toHaveBeenCalledTimes(1);
  delete server.answers['watch-users'];
  await settle(200);
  expect(presence.get('a')).toBeDefined();
  expect(presence.errors).toEqual([]);
});

test('a store that is away is asked again, more and more seldom', async () => {
  const presence = await connected();
  const away = vi.fn(() => ({ event: 'error', error: { code: 'UNAVAILABLE', message: 'away' } }));
  server.answers['watch-users'] = away;
  presence.watch('a');
  await settle(60_000);
  expect(away.mock.calls.length).toBeGreaterThan(3);
  expect(away.mock.calls.length).toBeLessThan(9);
  expect(presence.errors).toContain('UNAVAILABLE');
});

// What is known

test('a status is one frozen object until it changes', async () => {
  const presence = await connected();
  const heard = [];
  presence.watch('a', (status) => heard.push(status));
  await settle(10);
  server.change('a', 1);
  const before = presence.get('a');
  expect(Object.isFrozen(before)).toBe(true);
  server.tell('user-status-changed', statusOf('a', 1));
  expect(presence.get('a')).toBe(before);
  server.change('a', 2, { status: 'busy', statusText: 'in a call' });
  expect(presence.get('a')).toEqual(statusOf('a', 2, { status: 'busy', statusText: 'in a call' }));
  expect(heard.map(({ version }) => version)).toEqual([0, 1, 2]);
  expect(presence.changes).toEqual([['a', 0], ['a', 1], ['a', 2]]);
});

test('what is older than what is known changes nothing', async () => {
  const presence = await connected();
  presence.watch('a');
  await settle(10);
  server.change('a', 5, { status: 'dnd' });
  server.tell('user-offline', { userId: 'a', online: false, status: 'offline', lastActive: 't', version: 4 });
  server.tell('user-online', { userId: 'a', online: true, status: 'online', timestamp: 't', version: 5 });
  expect(presence.get('a')).toMatchObject({ status: 'dnd', version: 5 });
  server.tell('user-offline', { userId: 'a', online: false, status: 'offline', lastActive: 'u', version: 6 });
  expect(presence.get('a')).toEqual({ userId: 'a', online: false, status: 'offline', statusText: null, lastActive: 'u', connectedAt: null, version: 6 });
});

test('what comes right behind an answer is newer than it', async () => {
  const presence = await connected();
  server.behind = (event) => {
    if (event === 'watch-users') server.change('a', 1);
  };
  presence.watch('a');
  await settle(10);
  expect(presence.get('a')).toMatchObject({ online: true, version: 1 });
});

test('version 0 takes back what was told', async () => {
  const presence = await connected();
  presence.watch('a');
  await settle(10);
  server.change('a', 5);
  server.tell('user-offline', { userId: 'a', online: false, status: 'offline', lastActive: null, version: 0 });
  expect(presence.get('a')).toMatchObject({ status: 'offline', version: 0 });
  server.change('a', 3);
  expect(presence.get('a').version).toBe(3);
});

test('what a user is told of their own invisibility has no version of its own', async () => {
  const presence = await connected();
  presence.watch('me');
  await settle(10);
  server.change('me', 5);
  server.change('me', 5, { invisible: true });
  expect(presence.get('me').invisible).toBe(true);
  server.change('me', 5, { statusText: 'back' });
  expect(presence.get('me')).toEqual(statusOf('me', 5, { statusText: 'back' }));
});

test('who comes online may have a text, which is asked for, by all at different times', async () => {
  const presence = await connected();
  presence.watch(['a', 'b']);
  await settle(10);
  server.users.set('a', statusOf('a', 3, { status: 'busy', statusText: 'in a call' }));
  server.tell('user-online', { userId: 'a', online: true, status: 'busy', timestamp: 'u', version: 3 });
  expect(presence.get('a')).toEqual(statusOf('a', 3, { status: 'busy', lastActive: 'u', connectedAt: 'u' }));
  await settle(2100);
  expect(server.asked('watch-users').at(-1)).toEqual({ userIds: ['a'] });
  expect(presence.get('a').statusText).toBe('in a call');
  await settle(20_000);
  expect(server.asked('watch-users').length).toBe(3);
});

test('a listener that throws keeps nothing from the others', async () => {
  const presence = await connected();
  const thrown = [];
  vi.stubGlobal('queueMicrotask', (task) => Promise.resolve().then(task).catch((error) => thrown.push(error.message)));
  const heard = vi.fn();
  presence.watch('a', () => { throw new Error('of the page'); });
  const stop = presence.on('change', heard);
  await settle(10);
  expect(heard).toHaveBeenCalledTimes(1);
  expect(thrown).toEqual(['of the page']);
  stop();
  server.change('a', 2);
  expect(heard).toHaveBeenCalledTimes(1);
});

// Lost connections

test('after a lost connection that begins anew all is asked for, whatever the versions', async () => {
  const presence = await connected();
  presence.watch(['a', 'b']);
  await settle(10);
  server.change('a', 9);
  server.users.set('a', statusOf('a', 2, { status: 'away' })); // a server that has forgotten counts from 1
  server.socket.lose();
  expect(presence.state).toBe('reconnecting');
  expect(presence.get('a').version).toBe(9);
  await settle(10);
  expect(presence.states).toEqual(['connecting', 'connected', 'reconnecting', 'connected']);
  expect(server.asked('watch-users').at(-1)).toEqual({ userIds: ['a', 'b'] });
  expect(presence.get('a')).toMatchObject({ version: 2, status: 'away' });
});

test('after one that goes on nothing is asked for but what was not answered', async () => {
  const presence = await connected();
  presence.watch('a');
  await settle(10);
  server.recovers = true;
  server.mute = true;
  presence.watch('b');
  await settle(0);
  server.mute = false;
  server.socket.lose();
  await settle(10);
  expect(server.asked('watch-users').slice(1)).toEqual([{ userIds: ['a'] }, { userIds: ['b'] }, { userIds: ['b'] }]);
  expect(presence.get('b')).toBeDefined();
});

test('a connection that answers nothing any more is given up for another', async () => {
  const presence = await connected({ heartbeat: 10 });
  server.mute = true;
  await settle(14_000);
  expect(presence.state).toBe('connected');
  await settle(20_000);
  expect(presence.states.slice(2, 4)).toEqual(['reconnecting', 'connected']);
  expect(presence.errors).toEqual([]);
});

test('with another network the connection is tried at once', async () => {
  await connected();
  const before = server.asked('heartbeat').length;
  world.window.dispatchEvent(new Event('online'));
  expect(server.asked('heartbeat').length).toBe(before + 1);
});

test('a refusal that time mends is tried again when the server says', async () => {
  server.refuse = { code: 'SERVER_DRAINING', retryAfter: 9 };
  const presence = world.open();
  await settle(8900);
  expect(presence.errors).toEqual(['SERVER_DRAINING']);
  expect(presence.state).toBe('connecting');
  server.refuse = null;
  await settle(200);
  expect(presence.state).toBe('connected');
});

test('who is disconnected by a backend comes back with another token, if there is one', async () => {
  const getToken = vi.fn(() => makeToken());
  const presence = await connected({ getToken });
  server.socket.lose({ reason: 'io server disconnect' });
  await settle(2000);
  expect(presence.state).toBe('connected');
  expect(getToken).toHaveBeenCalledTimes(2);
});

test('that nobody is reached is no refusal', async () => {
  const presence = await connected();
  server.socket.hear('connect_error', { message: 'xhr poll error' });
  await settle(60_000);
  expect(presence.errors).toEqual([]);
  expect(server.socket.tokens.length).toBe(1);
});

test.each([
  ['left', 'window', 'pagehide', 'pageshow'],
  ['frozen', 'document', 'freeze', 'resume'],
])('a page that is %s lets go without a goodbye, and comes back when it is shown again', async (_how, target, hide, show) => {
  const presence = await connected();
  presence.watch('a');
  await settle(10);
  world[target].dispatchEvent(new Event(hide));
  expect(server.live).toEqual([]);
  expect(server.socket.goodbye).toBe(false);
  server.users.set('a', statusOf('a', 4));
  world[target].dispatchEvent(new Event(show));
  await settle(10);
  expect(presence.state).toBe('connected');
  expect(presence.get('a').version).toBe(4);
  presence.close();
  world.window.dispatchEvent(new Event('pageshow'));
  await settle(10);
  expect(presence.state).toBe('closed');
});

// Whether somebody is there

test('a tab that is visible says so again and again, and one that is hidden nothing', async () => {
  await connected();
  const beats = () => server.asked('heartbeat').length;
  const first = beats();
  await settle(100_000);
  expect(beats() - first).toBeGreaterThanOrEqual(3);
  expect(beats() - first).toBeLessThanOrEqual(5);
  world.document.show(false);
  const hidden = beats();
  await settle(300_000);
  expect(beats()).toBe(hidden);
  world.document.show(true);
  expect(beats()).toBe(hidden + 1);
});

test('a hidden tab asks for nothing, which would be activity, until it is shown', async () => {
  const presence = await connected();
  const unwatch = presence.watch('a');
  await settle(10);
  world.document.show(false);
  const asked = server.requests.length;
  presence.watch('b');
  unwatch();
  server.tell('user-online', { userId: 'a', online: true, status: 'online', timestamp: 't', version: 9 });
  await settle(100_000);
  expect(server.requests.length).toBe(asked);
  world.document.show(true);
  await settle(3000);
  expect([...server.socket.watched]).toEqual(['b']);
  expect(presence.get('b')).toBeDefined();
});

test('a hidden tab that comes back by a new connection asks how all are', async () => {
  const presence = await connected();
  presence.watch('a');
  await settle(10);
  world.document.show(false);
  server.users.set('a', statusOf('a', 8));
  server.socket.lose();
  await settle(10);
  expect(presence.get('a').version).toBe(8);
});

// Tokens

test('a token is renewed before it ends', async () => {
  const getToken = vi.fn(() => makeToken('me', { ttl: 600 }));
  const presence = await connected({ getToken });
  await settle(530_000);
  expect(server.asked('refresh-token')).toEqual([]);
  await settle(15_000);
  expect(getToken).toHaveBeenCalledTimes(2);
  expect(server.asked('refresh-token').length).toBe(1);
  await settle(545_000);
  expect(server.asked('refresh-token').length).toBe(2);
  expect(presence.states).toEqual(['connecting', 'connected']);
});

test('a clock that is wrong takes no token for longer, nor for ended', async () => {
  const ahead = () => makeToken('me', { ttl: 600, iat: Date.now() / 1000 - 7200, exp: Date.now() / 1000 - 6600 });
  const getToken = vi.fn(ahead);
  await connected({ getToken });
  await settle(500_000);
  expect(getToken).toHaveBeenCalledTimes(1);
  world.end();
  world = makeWorld();
  server = world.server;
  const behind = vi.fn(() => makeToken('me', { iat: Date.now() / 1000 + 7200, exp: Date.now() / 1000 + 7800 }));
  await connected({ getToken: behind });
  await settle(545_000);
  expect(behind).toHaveBeenCalledTimes(2);
});

test('a token that the server calls expired is renewed at once, and where there is no newer one, tried again', async () => {
  const token = makeToken();
  const getToken = vi.fn(() => token);
  const presence = await connected({ getToken });
  server.socket.hear('token-expired', {});
  await settle(10);
  expect(presence.errors).toEqual(['TOKEN_EXPIRED']);
  expect(server.asked('refresh-token')).toEqual([]);
  getToken.mockImplementation(() => makeToken());
  await settle(1500);
  expect(server.asked('refresh-token').length).toBe(1);
  expect(presence.state).toBe('connected');
});

test('a page is asked for one token at a time', async () => {
  const getToken = vi.fn(() => makeToken());
  await connected({ getToken });
  getToken.mockImplementation(() => new Promise((resolve) => { setTimeout(() => resolve(makeToken()), 100); }));
  server.socket.hear('token-expired', {});
  server.socket.hear('token-expired', {});
  await settle(1000);
  expect(getToken).toHaveBeenCalledTimes(2);
});

test('a token is not renewed by a connection that is lost', async () => {
  const getToken = vi.fn(() => makeToken('me', { ttl: 600 }));
  await connected({ getToken });
  server.socket.lose({ back: false });
  await settle(600_000);
  expect(getToken).toHaveBeenCalledTimes(1);
});

test.each(['resolves', 'rejects'])('a getToken that %s after close() changes nothing', async (how) => {
  let end;
  const getToken = vi.fn(() => makeToken());
  server.refuse = { code: 'TOKEN_EXPIRED' };
  const presence = world.open({ getToken });
  await settle(0);
  getToken.mockImplementation(() => new Promise((resolve, reject) => {
    end = how === 'resolves' ? () => resolve(makeToken()) : () => reject(new Error('late'));
  }));
  await settle(10);
  presence.close();
  end();
  await settle(100_000);
  expect(presence.state).toBe('closed');
  expect(presence.errors).toEqual([]);
  expect(server.socket.tokens.length).toBe(1);
});

test('a refused token is not shown again while getToken throws', async () => {
  const old = makeToken();
  const getToken = vi.fn(() => makeToken()).mockReturnValueOnce(old).mockRejectedValueOnce(new Error('no network'));
  server.refuse = (token) => (token === old ? { code: 'TOKEN_EXPIRED' } : null);
  const presence = world.open({ getToken });
  await settle(5000);
  expect(presence.state).toBe('connected');
  expect(server.socket.tokens.filter((token) => token === old).length).toBe(1);
});

test('a token that is refused is replaced once more', async () => {
  const old = makeToken();
  const getToken = vi.fn(() => makeToken()).mockImplementationOnce(() => old);
  server.refuse = (token) => (token === old ? { code: 'TOKEN_EXPIRED' } : null);
  const presence = await connected({ getToken });
  expect(getToken).toHaveBeenCalledTimes(2);
  expect(presence.states).toEqual(['connecting', 'connected']);
});

test.each([
  ['the same', () => 'the same'],
  ['none', vi.fn(() => '').mockImplementationOnce(() => 'a first')],
  ['others that are no better', () => makeToken()],
])('where getToken gives %s the state is refused, until connect() is called', async (_name, getToken) => {
  server.refuse = { code: 'TOKEN_INVALID' };
  const asked = vi.fn(getToken);
  const presence = world.open({ getToken: asked });
  await settle(100);
  expect(presence.states).toEqual(['connecting', 'refused']);
  expect(presence.errors.at(-1)).toBe('TOKEN_INVALID');
  const attempts = server.socket.tokens.length;
  expect(attempts).toBeLessThan(4);
  await settle(100_000);
  expect(server.socket.tokens.length).toBe(attempts);
  await expect(presence.setStatus('busy')).rejects.toMatchObject({ code: 'CLOSED' });
  server.refuse = null;
  const before = asked.mock.calls.length;
  presence.connect();
  await settle(10);
  expect(asked).toHaveBeenCalledTimes(before + 1);
  expect(presence.state).toBe(_name === 'none' ? 'refused' : 'connected');
});

test('what was refused long ago is not counted', async () => {
  let made = 0;
  const tokens = new Map();
  const getToken = () => {
    const token = makeToken();
    tokens.set(token, (made += 1));
    return token;
  };
  server.refuse = (token) => (tokens.get(token) % 2 ? { code: 'TOKEN_EXPIRED' } : null);
  const presence = await connected({ getToken });
  for (let round = 0; round < 4; round += 1) {
    server.socket.lose({ reason: 'io server disconnect' });
    await settle(3000);
    expect(presence.state).toBe('connected');
  }
  expect(made).toBe(10);
});

test('a getToken that throws is asked again', async () => {
  const getToken = vi.fn(() => makeToken()).mockRejectedValueOnce(new Error('no network')).mockRejectedValueOnce(new Error('none yet'));
  const presence = world.open({ getToken });
  await settle(500);
  expect(presence.state).toBe('connecting');
  expect(presence.errors).toEqual(['TOKEN_MISSING']);
  await settle(3000);
  expect(presence.state).toBe('connected');
  getToken.mockRejectedValueOnce(new Error('no network'));
  server.socket.lose({ reason: 'io server disconnect' });
  await settle(10_000);
  expect(presence.state).toBe('connected');
});

test("another user's token begins anew, and shows nothing of what the first one saw", async () => {
  const getToken = vi.fn(() => makeToken('other')).mockImplementationOnce(() => makeToken('me'));
  const presence = await connected({ getToken });
  presence.watch('a');
  await settle(10);
  server.change('a', 5);
  server.users.set('a', statusOf('a', 0, { online: false, status: 'offline' }));
  const [first] = server.sockets;
  first.hear('token-expired', {});
  await settle(1);
  expect(presence.get('a')).toBeUndefined();
  await settle(10);
  expect(first.goodbye).toBe(true);
  expect(server.sockets.length).toBe(2);
  expect(presence.state).toBe('connected');
  expect(presence.get('a').version).toBe(0);
});

// Requests

test('a status is set, with a text, for a while', async () => {
  const presence = await connected();
  await Promise.all([presence.setStatus('busy', { text: 'in a call', expiresIn: 60 }), settle(10)]);
  await Promise.all([presence.setStatus('online'), settle(10)]);
  expect(server.asked('set-status')).toEqual([
    { status: 'busy', statusText: 'in a call', expiresIn: 60 },
    { status: 'online', statusText: null, expiresIn: null },
  ]);
  server.answers['set-status'] = () => ({ event: 'error', error: { code: 'INVALID_PAYLOAD', message: 'no such status' } });
  const refused = expect(presence.setStatus('gone')).rejects.toMatchObject({ code: 'INVALID_PAYLOAD', message: 'no such status' });
  await settle(10);
  await refused;
});

test('what is asked before there is a connection, or lost with one, is asked by the next', async () => {
  const presence = world.open();
  const early = presence.setStatus('busy');
  await settle(10);
  await early;
  server.mute = true;
  const lost = presence.setStatus('dnd');
  await settle(10);
  server.mute = false;
  server.socket.lose();
  await settle(10);
  await lost;
  expect(server.asked('set-status').map(({ status }) => status)).toEqual(['busy', 'dnd', 'dnd']);
});

test('what nobody answers is given up', async () => {
  server.refuse = { code: 'TENANT_FULL' };
  const presence = world.open();
  const late = expect(presence.setStatus('busy')).rejects.toMatchObject({ code: 'TIMEOUT' });
  await settle(20_000);
  await late;
  const closed = expect(presence.whoIsOnline()).rejects.toMatchObject({ code: 'CLOSED' });
  presence.close();
  await closed;
});

test('who is online is asked page by page', async () => {
  const presence = await connected();
  server.answers['get-online-users'] = (payload) => ({ event: 'online-users', data: { users: [payload], count: 7, nextCursor: 'c', timestamp: 't' } });
  const asked = presence.whoIsOnline({ limit: 1, cursor: 'b' });
  await settle(10);
  expect(await asked).toEqual({ users: [{ limit: 1, cursor: 'b' }], count: 7, nextCursor: 'c' });
});
