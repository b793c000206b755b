// One whole conversation of two people: typing, messages, read marks, and a connection lost in its middle.

import assert from 'node:assert/strict';
import { afterEach, test } from 'node:test';

import { closeAll, eventually, tenant } from './client.mjs';

afterEach(closeAll);

const contents = (client) => client.payloads('new-message').map(({ content }) => content);

/** Sends a message, and returns it as it was acknowledged. */
async function send(client, message) {
  const answer = await client.ask('send-message', message);
  assert.equal(answer.event, 'message-sent', JSON.stringify(answer));
  return answer.data.message;
}

test('two people have a conversation', async () => {
  const site = tenant();
  const alice = await site.connect('1', { name: 'Alice', role: 'host' });
  const bob = await site.connect('2', { name: 'Bob' });
  const tab = await site.connect('1');
  for (const client of [alice, bob]) {
    const { event, data } = await client.ask('join-conversation', { conversationId: '2-1' });
    assert.deepEqual([event, data], ['joined-conversation', { channel: 'private-conversation.1-2', conversationId: '2-1' }]);
  }

  assert.deepEqual(await alice.ask('typing', { recipientId: '2', isTyping: true }), { event: 'typing-sent', data: {} });
  const typing = await bob.next('user-typing');
  assert.deepEqual({ ...typing, timestamp: null }, { user_id: '1', user_name: 'Alice', is_typing: true, timestamp: null });

  const hello = await send(alice, { recipientId: '2', content: 'hello', clientId: 'a' });
  assert.deepEqual(await bob.next('new-message'), hello);
  assert.deepEqual(await tab.next('new-message'), hello);
  assert.deepEqual(hello.sender, { id: '1', name: 'Alice', avatar: null, role: 'host' });
  assert.equal((await bob.next('user-typing', 2)).is_typing, false);
  assert.deepEqual(await send(alice, { recipientId: '2', content: 'hello', clientId: 'a' }), hello);

  assert.deepEqual(await bob.ask('mark-read', { messageId: hello.id }), { event: 'marked-read', data: { count: 1 } });
  const read = await alice.next('message-read');
  assert.deepEqual({ ...read, read_at: null }, { message_id: hello.id, read_by: '2', read_at: null });
  const answer = await send(bob, { conversationId: '1-2', content: 'hi' });
  assert.deepEqual(await alice.next('new-message'), answer);
  assert.deepEqual(await alice.ask('mark-read', { userId: '2' }), { event: 'marked-read', data: { count: 1 } });
  await bob.next('message-read');

  await alice.ask('heartbeat');
  await bob.ask('heartbeat');
  assert.deepEqual([alice, bob, tab].map(contents), [['hi'], ['hello'], ['hello', 'hi']]);
  const { data } = await bob.ask('join-conversation', { conversationId: '1-2', since: '0' });
  assert.deepEqual(data.history.map((each) => each.data), [{ ...hello, is_read: true }, { ...answer, is_read: true }]);
  assert.equal(data.recovered, true);
});

for (const joined of [[], ['private-conversation.1-2'], ['private-user.2'], ['private-user.2', 'private-conversation.1-2']]) {
  test(`who lost the connection, in ${joined.join(' and ') || 'no channel'}, hears each message once`, async () => {
    const site = tenant();
    const alice = await site.connect('1');
    const bob = await site.connect('2');
    for (const channel of joined) assert.equal((await bob.ask('join-channel', { channel })).event, 'joined-channel');
    await send(alice, { recipientId: '2', content: 'before' });
    await bob.next('new-message');
    bob.lose();
    await send(alice, { recipientId: '2', content: 'meanwhile' });
    await eventually(() => bob.socket.connected && bob.socket.recovered, 'recovered');
    await send(alice, { recipientId: '2', content: 'after' });
    await bob.next('new-message', 3);
    await bob.ask('heartbeat');
    assert.deepEqual(contents(bob), ['before', 'meanwhile', 'after']);
  });
}
