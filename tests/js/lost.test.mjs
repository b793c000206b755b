// Connections that are lost, as a network loses them, over the transports named in TRANSPORTS.
// Run by test_js_client.py, which starts the gateway.

import assert from 'node:assert/strict';
import { afterEach, test as nodeTest } from 'node:test';

import { closeAll, eventually, tenant } from './client.mjs';

const GRACE = Number(process.env.GRACE) * 1000; // milliseconds

const test = (name, body) => nodeTest(name, { timeout: 20000 }, body);

afterEach(closeAll);

test('a connection that is lost and comes back within the grace is heard by nobody', async () => {
  const here = tenant();
  const watcher = await here.connect('watcher');
  const alice = await here.connect('alice');
  const carol = await here.connect('carol', {}, { reconnection: false });
  await watcher.next('user-online', 2);

  alice.lose();
  assert.equal((await alice.next('connected', 2)).reconnect, true);
  assert.equal(alice.payloads('disconnect').length, 1);
  assert.equal((await alice.ask('heartbeat')).event, 'heartbeat-ack');
  // Carol is lost later and stays away: once her offline was heard, alice's grace is over too.
  carol.lose();
  await eventually(() => watcher.about('carol').includes('user-offline'), "carol's user-offline");
  assert.deepEqual(watcher.about('alice'), ['user-online']);
});

test('a connection that is lost and does not come back is offline after the grace', async () => {
  const here = tenant();
  const watcher = await here.connect('watcher');
  const bob = await here.connect('bob', {}, { reconnection: false });
  await watcher.next('user-online');
  const lost = Date.now();
  bob.lose();
  const { timestamp } = await watcher.next('user-offline');
  assert.ok(Date.parse(timestamp) - lost >= GRACE, 'the grace was kept');
});
