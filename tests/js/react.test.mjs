// presence-react.js with the real React and react-dom, the real client, and a gateway. Run by test_js_frameworks.py.

import assert from 'node:assert/strict';
import { afterEach, test as nodeTest } from 'node:test';

import { closeAll, tenant } from './client.mjs';
import { asked, closePresence, isTold, makePage, says as pageSays, presence } from './dom.mjs';

makePage();
globalThis.IS_REACT_ACT_ENVIRONMENT = true;
const { StrictMode, act, createElement: h, startTransition, useState, version } = await import('react');
const { createRoot } = await import('react-dom/client');
const { PresenceProvider, usePresence, usePresenceClient, usePresenceState } = await import('../../static/presence-react.js');

const test = (name, body) => nodeTest(name, { timeout: 30000 }, body);
const roots = new Set();

afterEach(async () => {
  for (const root of roots) await act(() => root.unmount());
  roots.clear();
  closePresence();
  closeAll();
});

/** A page with a component in it, in StrictMode, that mounts everything twice. */
function page(client) {
  const place = document.createElement('div');
  const root = createRoot(place);
  roots.add(root);
  return {
    text: () => place.textContent,
    render: (...children) => act(() => root.render(h(StrictMode, null, h(PresenceProvider, { client }, ...children)))),
    give(other) {
      client = other;
    },
    unmount: () => act(() => root.unmount()),
  };
}

/** Lets what comes from the gateway into React, until the page says just this. */
const says = (shown, text) => act(() => pageSays(shown, text));

function Status({ of }) {
  const status = usePresence(of);
  return h('p', null, `${of}: ${status ? [status.status, status.statusText].filter(Boolean).join(', ') : 'unknown'};`);
}

test('it is React 19', () => assert.match(version, /^19\./));

test('a component shows that a user comes, what they say, and that they go', async () => {
  const site = tenant();
  const shown = page(presence(site, 'alice').client);
  await shown.render(h(Status, { of: 'bob' }));
  await says(shown, 'bob: offline;');
  const bob = await site.connect('bob');
  await says(shown, 'bob: online;');
  await bob.ask('set-status', { status: 'busy', statusText: 'writing' });
  await says(shown, 'bob: busy, writing;');
  bob.socket.disconnect();
  await says(shown, 'bob: offline;');
});

test('what is not known yet is undefined, and so is nobody', async () => {
  const { client, held } = presence(tenant(), 'alice', { connect: false });
  const shown = page(client);
  await shown.render(h(Status, { of: 'bob' }), h(Status, { of: undefined }), h(Status, { of: null }), h(Status, { of: '' }));
  assert.equal(shown.text(), 'bob: unknown;undefined: unknown;null: unknown;: unknown;');
  assert.deepEqual([...held], [['bob', 1]]);
});

test('what StrictMode mounts twice is watched once, and what is unmounted leaves no watch behind', async () => {
  const site = tenant();
  const { client, held, sent } = presence(site, 'alice');
  const shown = page(client);
  await shown.render(h(Status, { of: 'bob' }));
  assert.equal(held.get('bob'), 1);
  await says(shown, 'bob: offline;');
  await shown.render();
  assert.equal(held.get('bob'), 0);
  await shown.render(h(Status, { of: 'bob' }));
  assert.equal(held.get('bob'), 1);
  await says(shown, 'bob: offline;');
  assert.equal(asked(sent, 'watch-users', 'bob'), 1);
  await shown.unmount();
  assert.equal(held.get('bob'), 0);
  assert.equal(client.get('bob'), undefined);
  await isTold(sent, 'unwatch-users', 'bob');
});

test('another id is another watch, and shows nothing of the last one', async () => {
  const site = tenant();
  await site.connect('bob');
  const { client, held } = presence(site, 'alice');
  const shown = page(client);
  const seen = [];
  function Seen({ of }) {
    const status = usePresence(of);
    seen.push([of, status?.userId]);
    return `${of}: ${status?.status}`;
  }
  await shown.render(h(Seen, { of: 'bob' }));
  await says(shown, 'bob: online');
  await shown.render(h(Seen, { of: 'carol' }));
  assert.deepEqual([held.get('bob'), held.get('carol')], [0, 1]);
  await says(shown, 'carol: offline');
  assert.ok(seen.every(([of, userId]) => userId === undefined || userId === of), JSON.stringify(seen));
});

test('a hundred components with the same id make one watch at the gateway', async () => {
  const site = tenant();
  const { client, held, sent } = presence(site, 'alice');
  const shown = page(client);
  const rows = (count) => Array.from({ length: count }, (_, key) => h(Status, { of: 'bob', key }));
  await shown.render(...rows(100));
  await says(shown, 'bob: offline;'.repeat(100));
  assert.equal(held.get('bob'), 100);
  await shown.render(...rows(1));
  assert.equal(held.get('bob'), 1);
  await site.connect('bob');
  await says(shown, 'bob: online;');
  assert.equal(asked(sent, 'watch-users', 'bob'), 1);
  assert.equal(asked(sent, 'unwatch-users', 'bob'), 0);
});

test('components that show the same user never differ, also where it changes while React renders', async () => {
  const site = tenant();
  await site.connect('bob');
  const { client } = presence(site, 'alice');
  const get = client.get.bind(client);
  let changed;
  client.get = (userId) => changed ?? get(userId);
  const shown = page(client);
  let showMore;
  function Row({ slow }) {
    const status = usePresence('bob');
    if (slow) changed ??= Object.freeze({ ...get('bob'), status: 'busy' }); // the rows before have rendered the old one
    return `${status?.status};`;
  }
  function Rows() {
    const [more, setMore] = useState(false);
    showMore = () => startTransition(() => setMore(true)); // may be interrupted, as such rendering may
    return [h(Row, { key: 1 }), h(Row, { key: 2, slow: more }), more && h(Row, { key: 3 })];
  }
  await shown.render(h(Rows));
  await says(shown, 'online;online;');
  await act(() => showMore());
  assert.equal(shown.text(), 'busy;busy;busy;');
});

test('a component renders again for its own user only, and only for what changes', async () => {
  const site = tenant();
  const bob = await site.connect('bob');
  const shown = page(presence(site, 'alice').client);
  let rendered = 0;
  function Counted() {
    const status = usePresence('bob');
    rendered += 1;
    return `bob is ${status?.status};`;
  }
  await shown.render(h(Counted), h(Status, { of: 'carol' }));
  await says(shown, 'bob is online;carol: offline;');
  const before = rendered;
  await site.connect('carol');
  await says(shown, 'bob is online;carol: online;');
  assert.equal(rendered, before);
  await bob.ask('set-status', { status: 'dnd' });
  await says(shown, 'bob is dnd;carol: online;');
  assert.ok(rendered > before);
});

test('another client takes over, and the first one is left alone', async () => {
  const [here, there] = [tenant(), tenant()];
  await there.connect('bob');
  const [first, second] = [presence(here, 'alice'), presence(there, 'alice')];
  const shown = page(first.client);
  await shown.render(h(Status, { of: 'bob' }));
  await says(shown, 'bob: offline;');
  shown.give(second.client);
  await shown.render(h(Status, { of: 'bob' }));
  await says(shown, 'bob: online;');
  assert.deepEqual([first.held.get('bob'), second.held.get('bob')], [0, 1]);
});

test('the state of the connection is there to be shown', async () => {
  const { client, held } = presence(tenant(), 'alice', { connect: false });
  const shown = page(client);
  const State = () => usePresenceState();
  await shown.render(h(State));
  assert.equal(shown.text(), 'closed');
  await act(() => client.connect());
  await says(shown, 'connected');
  await act(() => client.close());
  assert.equal(shown.text(), 'closed');
  assert.equal(held.get('state'), 1);
  await shown.unmount();
  assert.equal(held.get('state'), 0);
});

test('without a provider a component is told what is missing, and without a client it knows nobody', async (t) => {
  const errors = t.mock.method(console, 'error', () => {});
  const place = document.createElement('div');
  const root = createRoot(place);
  await assert.rejects(async () => act(() => root.render(h(Status, { of: 'bob' }))), /<PresenceProvider client=/);
  await act(() => root.unmount());
  errors.mock.restore();
  const Who = () => String(usePresenceClient());
  const State = () => usePresenceState();
  const shown = page(undefined);
  await shown.render(h(Status, { of: 'bob' }), h(Who), ' ', h(State));
  assert.equal(shown.text(), 'bob: unknown;null closed');
});
