// The client with the real socket.io-client against a real gateway, which test_js_presence.py starts.

import { afterEach, expect, test, vi } from 'vitest';
import { io } from 'socket.io-client';

import { PresenceClient } from '../../../static/presence-client.js';
import { sign, tenant, transports } from '../client.mjs';

const { GATEWAY_URL, SERVICE_API_KEY } = process.env;
const WITHIN = { timeout: 20_000, interval: 10 };

const opened = [];

afterEach(() => {
  for (const presence of opened.splice(0)) presence.close();
});

/** A page of a user, and what it has heard. */
function page(here, user, options = {}) {
  const sockets = [];
  const presence = new PresenceClient({
    url: GATEWAY_URL,
    io: (url, more) => {
      sockets.push(io(url, { transports, reconnectionDelay: 20, reconnectionDelayMax: 20, ...more }));
      return sockets.at(-1);
    },
    getToken: () => here.token(user),
    share: false,
    ...options,
  });
  const seen = { presence, sockets, states: [], errors: [], changes: [] };
  presence.on('state', (state) => seen.states.push(state));
  presence.on('error', ({ code }) => seen.errors.push(code));
  presence.on('change', ({ userId, status }) => seen.changes.push(`${userId} ${status}`));
  presence.connect();
  opened.push(presence);
  return seen;
}

const state = (seen, wanted) => vi.waitFor(() => expect(seen.presence.state).toBe(wanted), WITHIN);
const shows = (seen, user, wanted) => vi.waitFor(() => expect(seen.presence.get(user)).toMatchObject(wanted), WITHIN);

test('one hears how another comes, is, and goes', async () => {
  const here = tenant();
  const alice = page(here, 'alice');
  alice.presence.watch(['bob', 'alice']);
  await shows(alice, 'bob', { online: false, version: 0, lastActive: null });
  await shows(alice, 'alice', { status: 'online', version: 1 });
  const bob = page(here, 'bob');
  await shows(alice, 'bob', { online: true, status: 'online' });
  await bob.presence.setStatus('busy', { text: 'in a call' });
  await shows(alice, 'bob', { status: 'busy', statusText: 'in a call' });
  bob.presence.close();
  await shows(alice, 'bob', { status: 'offline', statusText: null });
  // What is set by hand outlasts it, and its text is not in the event.
  bob.presence.connect();
  await shows(alice, 'bob', { status: 'busy', statusText: 'in a call' });
  expect(alice.errors).toEqual([]);
});

test('one hears of nobody but whom they watch', async () => {
  const here = tenant();
  const alice = page(here, 'alice');
  await state(alice, 'connected');
  const heard = [];
  alice.sockets[0].onAny((event, payload) => heard.push([event, payload.userId]));
  const unwatch = alice.presence.watch('bob');
  await shows(alice, 'bob', { online: false });
  unwatch();
  alice.presence.watch('carol');
  await shows(alice, 'carol', { online: false });
  await vi.waitFor(async () => {
    const { data } = await alice.sockets[0].emitWithAck('unwatch-users', { userIds: ['bob'] });
    expect(data.count).toBe(0); // it has said so
  }, WITHIN);
  await state(page(here, 'bob'), 'connected');
  page(here, 'carol');
  await shows(alice, 'carol', { online: true });
  expect(heard.filter(([, userId]) => userId === 'bob')).toEqual([]);
});

test('the invisible see themselves, and nobody else does', async () => {
  const here = tenant();
  const [alice, bob] = [page(here, 'alice'), page(here, 'bob')];
  for (const each of [alice, bob]) each.presence.watch('bob');
  await shows(alice, 'bob', { online: true });
  await bob.presence.setStatus('invisible');
  await shows(alice, 'bob', { status: 'offline' });
  await shows(bob, 'bob', { status: 'online', invisible: true });
  await bob.presence.setStatus('online');
  await shows(alice, 'bob', { status: 'online' });
  await vi.waitFor(() => expect(bob.presence.get('bob').invisible).toBeUndefined(), WITHIN);
});

test('who is online is listed page by page', async () => {
  const here = tenant();
  const alice = page(here, 'alice');
  await state(page(here, 'bob'), 'connected');
  await state(alice, 'connected');
  const first = await alice.presence.whoIsOnline({ limit: 1 });
  expect(first).toMatchObject({ users: [{ userId: 'alice' }], count: 2 });
  expect(await alice.presence.whoIsOnline({ cursor: first.nextCursor })).toMatchObject({ users: [{ userId: 'bob' }], nextCursor: null });
  await expect(alice.presence.whoIsOnline({ cursor: 'nonsense' })).rejects.toMatchObject({ code: 'INVALID_PAYLOAD' });
});

test.each(['what was missed is told', 'all is asked for'])('a lost connection misses nothing: %s', async (how) => {
  const here = tenant();
  const [alice, bob] = [page(here, 'alice'), page(here, 'bob')];
  alice.presence.watch('bob');
  await shows(alice, 'bob', { status: 'online' });
  alice.sockets[0].io.reconnection(false); // until there is something to miss
  alice.sockets[0].io.engine.close();
  await state(alice, 'reconnecting');
  await bob.presence.setStatus('dnd', { text: 'until noon' });
  if (how === 'all is asked for') alice.sockets[0]._pid = undefined; // as after the window
  alice.sockets[0].io.reconnection(true);
  alice.sockets[0].connect();
  await shows(alice, 'bob', { status: 'dnd', statusText: 'until noon' });
  expect(alice.sockets[0].recovered).toBe(how === 'what was missed is told');
  expect(alice.states).toEqual(['connecting', 'connected', 'reconnecting', 'connected']);
  expect(alice.changes.slice(-2)).toEqual(['bob online', 'bob dnd']);
});

test('tokens that end soon are renewed, and the connection stays', async () => {
  const here = tenant();
  let tokens = 0;
  const getToken = () => {
    tokens += 1;
    const now = Math.floor(Date.now() / 1000);
    return here.token('alice', { iat: now, exp: now + 5 });
  };
  const alice = page(here, 'alice', { getToken });
  await vi.waitFor(() => expect(tokens).toBeGreaterThan(3), WITHIN);
  expect(alice.states).toEqual(['connecting', 'connected']);
  expect(alice.errors).toEqual([]);
});

test('a page whose clock is behind renews its token when the gateway says so', async () => {
  const here = tenant();
  const now = Math.floor(Date.now() / 1000);
  const tokens = [here.token('alice', { exp: now + 2 }), here.token('alice', { exp: now + 3600 })];
  const real = Date.now;
  vi.spyOn(Date, 'now').mockImplementation(() => real() - 1_800_000);
  try {
    const alice = page(here, 'alice', { getToken: () => tokens.shift() });
    await state(alice, 'connected');
    await vi.waitFor(() => expect(tokens).toEqual([]), WITHIN);
    await alice.presence.whoIsOnline();
    expect(alice.states).toEqual(['connecting', 'connected']);
    expect(alice.errors).toEqual([]);
  } finally {
    vi.restoreAllMocks();
  }
});

test('a token that is refused is replaced, or the state says so', async () => {
  const here = tenant();
  const tokens = [here.token('alice', { exp: 1 }), here.token('alice')];
  const alice = page(here, 'alice', { getToken: () => tokens.shift() });
  await state(alice, 'connected');
  const bob = page(here, 'bob', { getToken: () => sign({ sub: 'bob', exp: 1 }) });
  await state(bob, 'refused');
  expect(bob.errors).toEqual(['TOKEN_EXPIRED']);
});

test('who is disconnected by a backend comes back', async () => {
  const here = tenant();
  const alice = page(here, 'alice');
  await state(alice, 'connected');
  const answer = await fetch(`${GATEWAY_URL}/api/users/alice/connections?tenant=${here.name}`, {
    method: 'DELETE', headers: { 'X-API-Key': SERVICE_API_KEY },
  });
  expect(await answer.json()).toEqual({ closed: 1 });
  await vi.waitFor(() => expect(alice.states).toEqual(['connecting', 'connected', 'reconnecting', 'connected']), WITHIN);
});

test('of more than may be watched as many are watched as may be', async () => {
  const here = tenant();
  const max = Number(process.env.MAX_WATCHED_USERS);
  const users = Array.from({ length: max + 5 }, (_, number) => `user-${number}`);
  const alice = page(here, 'alice');
  const unwatch = alice.presence.watch(users.slice(0, 5));
  alice.presence.watch(users.slice(5));
  await vi.waitFor(() => expect(alice.errors).toEqual(['INVALID_PAYLOAD']), WITHIN);
  expect(users.filter((userId) => alice.presence.get(userId)).length).toBe(max);
  unwatch();
  await vi.waitFor(() => expect(users.slice(5).every((userId) => alice.presence.get(userId))).toBe(true), WITHIN);
});
