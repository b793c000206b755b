// What waited for a user who was not there: handed over in order, and again until it is acknowledged.

import assert from 'node:assert/strict';
import { afterEach, test } from 'node:test';

import { backend, closeAll, eventually, start, tenant } from './client.mjs';

afterEach(closeAll);

/** Connects a user who keeps what is said to them, and acknowledges what `takes` accepts. */
function listen(site, takes = () => true) {
  const client = start({ auth: { token: site.token('alice') } });
  client.said = [];
  client.socket.on('order-shipped', (data, ...more) => {
    const acknowledge = more.find((each) => typeof each === 'function');
    client.said.push({ data, id: acknowledge ? more[0] : null, count: more.length });
    if (acknowledge && takes(data)) acknowledge();
  });
  return client;
}

const notify = (site, data, user = 'alice') =>
  backend('POST', `/api/notifications?tenant=${site.name}`, { userId: user, event: 'order-shipped', data });

test('what was said to one who was away comes in order, with an id, before what is new', async () => {
  const site = tenant();
  for (const n of [0, 1, 2]) assert.deepEqual(await notify(site, { n }), { sent: true, method: 'queued' });
  const alice = listen(site);
  await alice.next('connected');
  assert.deepEqual(await notify(site, { n: 3 }), { sent: true, method: 'realtime' });
  await eventually(() => alice.said.length === 4, 'four');
  assert.deepEqual(alice.said.map(({ data }) => data.n), [0, 1, 2, 3]);
  const ids = alice.said.map(({ id }) => id);
  assert.equal(new Set(ids.slice(0, 3)).size, 3);
  for (const id of ids.slice(0, 3)) assert.equal(typeof id, 'string');
  assert.equal(ids[3], null);
});

test('what is acknowledged does not come again, and what is not comes with the same id', async () => {
  const site = tenant();
  for (const n of [0, 1, 2]) await notify(site, { n });
  const alice = listen(site, ({ n }) => n !== 1);
  await eventually(() => alice.said.length === 3, 'three');
  const kept = alice.said[1].id;
  await alice.ask('heartbeat'); // behind the acknowledgements
  await new Promise((resolve) => { setTimeout(resolve, 200); });
  alice.socket.disconnect();
  const again = listen(site);
  await eventually(() => again.said.length === 1, 'one');
  await again.ask('heartbeat');
  assert.deepEqual(again.said.map(({ data, id }) => [data.n, id]), [[1, kept]]);
});

test('what waited leaves the offset alone by which a connection goes on', async () => {
  const site = tenant();
  await notify(site, 'a text, as an offset is one');
  const alice = listen(site);
  await eventually(() => alice.said.length === 1, 'one');
  const settled = alice.socket.io.engine.transport.name;
  await alice.ask('heartbeat');
  await eventually(() => alice.socket.io.engine.transport.name === settled, 'the transport');
  let connects = 0;
  alice.socket.on('connect', () => { connects += 1; });
  alice.lose();
  await eventually(() => connects === 1, 'the return');
  assert.equal(alice.socket.recovered, true);
  await alice.next('connected', 2);
  await notify(site, 'new');
  await eventually(() => alice.said.length === 2, 'two');
  assert.deepEqual(alice.said.map(({ data }) => data), ['a text, as an offset is one', 'new']);
});
