// pusher-js and Laravel Echo, unmodified, as the gateway's Pusher door finds them, on one node or, in turn, on several.
// Run by test_js_pusher.py, which starts the gateways.

import assert from 'node:assert/strict';
import { createHash, createHmac } from 'node:crypto';
import { afterEach, test as nodeTest } from 'node:test';

import Echo from 'laravel-echo';
import Pusher from 'pusher-js';

import { backend, closeAll, eventually, sign, start } from './client.mjs';

const { PUSHER_KEY, PUSHER_SECRET } = process.env;
const nodes = process.env.NODES.split(',').map((url) => new URL(url));
const opened = new Set();
let turn = 0;

const test = (name, body) => nodeTest(name, { timeout: 30000 }, body);
const unique = (name) => `${name}-${Math.random().toString(36).slice(2)}`;
const hmac = (text) => `${PUSHER_KEY}:${createHmac('sha256', PUSHER_SECRET).update(text).digest('hex')}`;

/** What a backend of the user's would answer to pusher-js. */
function authorizer(user, { info, forged } = {}) {
  return ({ channelName, socketId }, callback) => {
    let text = `${socketId}:${channelName}`;
    const answer = {};
    if (channelName.startsWith('presence-')) {
      answer.channel_data = JSON.stringify({ user_id: user, user_info: info ?? { name: `Name of ${user}` } });
      text += `:${answer.channel_data}`;
    }
    callback(null, { ...answer, auth: hmac(forged ? `${text}!` : text) });
  };
}

function options(user, more = {}) {
  const url = nodes[turn++ % nodes.length]; // each client by another node
  return {
    cluster: 'any',
    wsHost: url.hostname,
    wsPort: url.port,
    forceTLS: false,
    enabledTransports: ['ws'],
    disableStats: true,
    channelAuthorization: { customHandler: authorizer(user, more) },
    userAuthentication: {
      customHandler: ({ socketId }, callback) => {
        const data = JSON.stringify({ id: user, user_info: { name: user }, watchlist: more.watchlist ?? [] });
        callback(null, { auth: hmac(`${socketId}::user::${data}${more.forged ? '!' : ''}`), user_data: data });
      },
    },
    ...more.options,
  };
}

async function connect(user, more) {
  const pusher = new Pusher(more?.key ?? PUSHER_KEY, options(user, more));
  opened.add(pusher);
  pusher.errors = [];
  pusher.connection.bind('error', (error) => pusher.errors.push(error.data ?? error.error?.data ?? error));
  if (!more?.key) await eventually(() => pusher.connection.state === 'connected', 'connected');
  return pusher;
}

/** A channel, with everything that is heard in it as [event, data]. */
function enter(pusher, name) {
  const channel = pusher.subscribe(name);
  channel.heard = [];
  channel.bind_global((event, data) => channel.heard.push([event, data]));
  channel.names = () => channel.heard.map(([event]) => event);
  channel.of = (event) => channel.heard.filter(([name]) => name === event).map(([, data]) => data);
  channel.next = (event, n = 1) => eventually(() => channel.of(event).length >= n && [channel.of(event)[n - 1]], `${event} in ${name}`).then(([data]) => data);
  return channel;
}

async function entered(pusher, name) {
  const channel = enter(pusher, name);
  await channel.next('pusher:subscription_succeeded');
  return channel;
}

/** Publishes as a server library does. */
async function publish(path, body) {
  const text = JSON.stringify(body);
  const query = {
    auth_key: PUSHER_KEY,
    auth_timestamp: Math.floor(Date.now() / 1000),
    auth_version: '1.0',
    body_md5: createHash('md5').update(text).digest('hex'),
  };
  const sorted = Object.keys(query).sort().map((name) => `${name}=${query[name]}`).join('&');
  const signature = createHmac('sha256', PUSHER_SECRET).update(`POST\n${path}\n${sorted}`).digest('hex');
  const url = nodes[turn++ % nodes.length];
  const response = await fetch(new URL(`${path}?${sorted}&auth_signature=${signature}`, url), { method: 'POST', body: text });
  assert.equal(response.status, 200, await response.text());
}

const say = (channel, name, data) => publish('/apps/1/events', { name, channel, data: JSON.stringify(data) });

afterEach(() => {
  for (const client of opened) client.disconnect();
  opened.clear();
  closeAll();
});

test('a public channel brings what a backend says in it', async () => {
  const pusher = await connect('alice');
  assert.match(pusher.connection.socket_id, /^\d+\.\d+$/);
  const name = unique('news');
  const channel = await entered(pusher, name);
  await say(name, 'my-event', { a: [1, 'ü'] });
  assert.deepEqual(await channel.next('my-event'), { a: [1, 'ü'] });
  pusher.unsubscribe(name);
  const other = await entered(await connect('bob'), name);
  await say(name, 'later', 1);
  assert.equal(await other.next('later'), 1);
  assert.deepEqual(channel.of('later'), []);
});

test('a private channel takes a signature, and brings client events to the others', async () => {
  const name = unique('private-room');
  const alice = await entered(await connect('alice'), name);
  const bob = await entered(await connect('bob'), name);
  const refused = enter(await connect('eve', { forged: true }), name);
  const error = await refused.next('pusher:subscription_error');
  assert.deepEqual([error.type, error.status], ['AuthError', 401]);

  bob.trigger('client-typing', { on: true });
  assert.deepEqual(await alice.next('client-typing'), { on: true });
  await say(name, 'done', null);
  await bob.next('done');
  assert.deepEqual(bob.of('client-typing'), [], 'who says it does not hear it');
  assert.deepEqual(refused.names(), ['pusher:subscription_error']);
});

test('members of a presence channel hear of each other, once for each user', async () => {
  const name = unique('presence-room');
  const alice = await entered(await connect('alice'), name);
  assert.deepEqual(alice.members.members, { alice: { name: 'Name of alice' } });
  assert.equal(alice.members.me.id, 'alice');
  const [tab, window] = [await connect('bob'), await connect('bob')];
  const bob = await entered(tab, name);
  const again = await entered(window, name);
  assert.deepEqual(Object.keys(again.members.members).sort(), ['alice', 'bob']);
  assert.equal(bob.members.count, 2);
  assert.deepEqual(await alice.next('pusher:member_added'), { id: 'bob', info: { name: 'Name of bob' } });

  const senders = [];
  alice.bind('client-hi', (_data, metadata) => senders.push(metadata.user_id));
  bob.trigger('client-hi', 1);
  await alice.next('client-hi');
  assert.deepEqual(senders, ['bob']);

  tab.disconnect();
  await say(name, 'still', 1);
  await alice.next('still');
  assert.deepEqual(alice.of('pusher:member_removed'), []);
  window.unsubscribe(name);
  assert.equal((await alice.next('pusher:member_removed')).id, 'bob');
  assert.equal(alice.of('pusher:member_added').length, 1);
  assert.equal(alice.members.count, 1);
});

test('client events are for private and presence channels, and ten in a second', async () => {
  const pusher = await connect('alice');
  (await entered(pusher, unique('news'))).trigger('client-x', 1);
  await eventually(() => pusher.errors.length === 1, 'refused');
  assert.equal(pusher.errors[0].code, null);
  const name = unique('private-room');
  const channel = await entered(pusher, name);
  const other = await entered(await connect('bob'), name);
  for (let n = 0; n < 20; n++) channel.trigger('client-n', n);
  await eventually(() => pusher.errors.length > 1, 'over the rate');
  assert.equal(pusher.errors[1].code, 4301);
  await other.next('client-n', 10);
  assert.deepEqual(other.of('client-n').slice(0, 10), [...Array(10).keys()]);
  assert.equal(pusher.connection.state, 'connected');
});

test('a cache channel begins with the last event', async () => {
  const name = unique('private-cache-score');
  const first = await entered(await connect('alice'), name);
  await first.next('pusher:cache_miss');
  await say(name, 'score', 1);
  await say(name, 'score', 2);
  await first.next('score', 2);
  const later = await entered(await connect('bob'), name);
  assert.equal(await later.next('score'), 2);
  assert.deepEqual(later.names().slice(0, 2), ['pusher:subscription_succeeded', 'score']);
});

test('who signs in hears what is for them, and who of their watchlist comes and goes', async () => {
  const [me, friend, absent] = [unique('me'), unique('friend'), unique('absent')];
  const there = await connect(friend);
  there.signin();
  await there.user.signinDonePromise;
  const pusher = await connect(me, { watchlist: [friend, absent] });
  const events = [];
  for (const name of ['online', 'offline']) {
    pusher.user.watchlist.bind(name, (event) => events.push([name, event.user_ids]));
  }
  const heard = [];
  pusher.user.bind('hello', (data) => heard.push(data));
  pusher.signin();
  await eventually(() => events.length === 1, 'who is there');
  assert.deepEqual(events[0], ['online', [friend]]);

  await publish(`/apps/1/users/${me}/events`, { name: 'hello', data: '{"n":1}' });
  await eventually(() => heard.length === 1, 'an event of the user');
  await backend('POST', '/api/notifications', { userId: me, event: 'hello', data: { n: 2 } });
  await eventually(() => heard.length === 2, 'a notification');
  assert.deepEqual(heard, [{ n: 1 }, { n: 2 }]);

  there.disconnect();
  await eventually(() => events.length === 2, 'gone');
  assert.deepEqual(events[1], ['offline', [friend]]);
  const late = await connect(absent);
  late.signin();
  await eventually(() => events.length === 3, 'come');
  assert.deepEqual(events[2], ['online', [absent]]);
});

test('a signature that is wrong signs nobody in', async () => {
  const pusher = await connect('alice', { forged: true });
  pusher.signin();
  await eventually(() => pusher.connection.state === 'disconnected', 'closed');
  assert.ok(pusher.errors.some((error) => error.code === 4009), JSON.stringify(pusher.errors));
});

test('an application that is not this one is refused for good', async () => {
  const pusher = await connect('alice', { key: 'another' });
  await eventually(() => ['disconnected', 'failed'].includes(pusher.connection.state), 'refused');
  assert.ok(pusher.errors.some((error) => error.code === 4001), JSON.stringify(pusher.errors));
});

test('one world: a native client and one of pusher-js see the same, and both are online', async () => {
  const [native, other] = [unique('native'), unique('other')];
  const name = unique('presence-room');
  const io = start({ auth: { token: sign({ sub: native, name: 'Native' }) } });
  await io.next('connected');
  const joined = await io.ask('join-channel', { channel: name });
  assert.deepEqual(joined.data.members.map((member) => member.userId), [native]);

  const pusher = await connect(other);
  const channel = await entered(pusher, name);
  assert.deepEqual(Object.keys(channel.members.members).sort(), [native, other].sort());
  assert.deepEqual(channel.members.get(native).info, { name: 'Native' });
  assert.deepEqual((await io.next('member-added')).info, { name: `Name of ${other}` });
  await eventually(() => io.about(other).length === 1, 'online');
  const statuses = await io.ask('check-users-status', { userIds: [native, other] });
  assert.deepEqual(statuses.data.statuses.map((status) => status.online), [true, true]);

  await io.ask('leave-channel', { channel: name });
  assert.equal((await channel.next('pusher:member_removed')).id, native);
  await io.ask('join-channel', { channel: name });
  assert.equal((await channel.next('pusher:member_added')).id, native);
  pusher.disconnect();
  assert.equal((await io.next('member-removed')).userId, other);
  await eventually(() => io.about(other).length === 2, 'offline');
  assert.deepEqual(io.about(other), ['user-online', 'user-offline']);
});

for (const broadcaster of ['pusher', 'reverb']) {
  test(`Laravel Echo with the broadcaster ${broadcaster}`, async () => {
    const room = unique('room');
    const page = (user) => {
      const { channelAuthorization, userAuthentication, ...plain } = options(user);
      const echo = new Echo({
        ...plain,
        broadcaster,
        key: PUSHER_KEY,
        Pusher,
        authEndpoint: new URL('/broadcasting/auth', nodes[0]).href,
        auth: { headers: { Authorization: `Bearer ${sign({ sub: user, name: user })}` } },
      });
      opened.add(echo);
      const heard = [];
      echo.join(room)
        .here((members) => heard.push(['here', members.map((member) => member.name).sort()]))
        .joining((member) => heard.push(['joining', member.name]))
        .leaving((member) => heard.push(['leaving', member.name]))
        .listen('.message.sent', (data) => heard.push(['message', data]))
        .listenForWhisper('typing', (data) => heard.push(['typing', data]));
      return { echo, heard };
    };
    const alice = page('alice');
    await eventually(() => alice.heard.length === 1, 'alice is here');
    const bob = page('bob');
    await eventually(() => alice.heard.length === 2 && bob.heard.length === 1, 'bob came');
    assert.deepEqual(bob.heard[0], ['here', ['alice', 'bob']]);
    bob.echo.join(room).whisper('typing', { name: 'bob' });
    await say(`presence-${room}`, 'message.sent', { id: 1 });
    await eventually(() => alice.heard.length === 4, 'both are heard');
    bob.echo.leave(room);
    await eventually(() => alice.heard.length === 5, 'bob left');
    assert.deepEqual(alice.heard.slice(0, 2), [['here', ['alice']], ['joining', 'bob']]);
    assert.deepEqual(alice.heard.slice(2, 4).sort(), [['message', { id: 1 }], ['typing', { name: 'bob' }]]);
    assert.deepEqual(alice.heard[4], ['leaving', 'bob']);
  });
}
