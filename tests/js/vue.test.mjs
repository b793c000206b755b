// presence-vue.js with the real Vue, the real client, and a gateway. Run by test_js_frameworks.py.

import assert from 'node:assert/strict';
import { afterEach, test as nodeTest } from 'node:test';

import { closeAll, eventually, tenant } from './client.mjs';
import { asked, closePresence, isTold, makePage, presence, says } from './dom.mjs';

makePage();
const { createApp, effectScope, h, nextTick, ref, shallowRef, version } = await import('vue');
const { createPresence, usePresence, usePresenceClient, usePresenceState } = await import('../../static/presence-vue.js');

const test = (name, body) => nodeTest(name, { timeout: 30000 }, body);
const apps = new Set();

afterEach(() => {
  for (const app of apps) app.unmount();
  apps.clear();
  closePresence();
  closeAll();
});

/** A page with what a function renders in it. */
function page(client, render) {
  const app = createApp({ render });
  const place = document.createElement('div');
  app.use(createPresence(client)).mount(place);
  apps.add(app);
  return {
    app,
    text: () => place.textContent,
    unmount() {
      apps.delete(app);
      app.unmount();
    },
  };
}

const Status = {
  props: ['of'],
  setup(props) {
    const status = usePresence(() => props.of);
    return () => h('p', `${props.of}: ${[status.value?.status ?? 'unknown', status.value?.statusText].filter(Boolean).join(', ')};`);
  },
};

test('it is Vue 3', () => assert.match(version, /^3\./));

test('a component shows that a user comes, what they say, and that they go', async () => {
  const site = tenant();
  const shown = page(presence(site, 'alice').client, () => h(Status, { of: 'bob' }));
  await says(shown, 'bob: offline;');
  const bob = await site.connect('bob');
  await says(shown, 'bob: online;');
  await bob.ask('set-status', { status: 'busy', statusText: 'writing' });
  await says(shown, 'bob: busy, writing;');
  bob.socket.disconnect();
  await says(shown, 'bob: offline;');
});

test('what is not known yet is undefined, and so is nobody', () => {
  const { client, held } = presence(tenant(), 'alice', { connect: false });
  const shown = page(client, () => [h(Status, { of: 'bob' }), h(Status), h(Status, { of: null }), h(Status, { of: '' })]);
  assert.equal(shown.text(), 'bob: unknown;undefined: unknown;null: unknown;: unknown;');
  assert.deepEqual([...held], [['bob', 1]]);
});

test('what is mounted, unmounted and mounted again leaves no watch behind', async () => {
  const site = tenant();
  const { client, held, sent } = presence(site, 'alice');
  const isThere = ref(true);
  const shown = page(client, () => (isThere.value ? h(Status, { of: 'bob' }) : 'gone'));
  await says(shown, 'bob: offline;');
  isThere.value = false;
  await nextTick();
  assert.deepEqual([shown.text(), held.get('bob')], ['gone', 0]);
  isThere.value = true;
  await nextTick();
  assert.equal(held.get('bob'), 1);
  await says(shown, 'bob: offline;');
  assert.equal(asked(sent, 'watch-users', 'bob'), 1);
  shown.unmount();
  assert.equal(held.get('bob'), 0);
  await isTold(sent, 'unwatch-users', 'bob');
  assert.equal(client.get('bob'), undefined);
});

const names = { 'a text': () => 'bob', 'a ref': () => ref('bob'), 'a shallow ref': () => shallowRef('bob'), 'a getter': () => () => 'bob' };
for (const [kind, make] of Object.entries(names)) {
  test(`the id may be ${kind}`, async () => {
    const site = tenant();
    await site.connect('bob');
    const shown = page(presence(site, 'alice').client, () => h({
      setup() {
        const status = usePresence(make());
        return () => status.value?.status;
      },
    }));
    await says(shown, 'online');
  });
}

test('another id is another watch, and shows nothing of the last one, not for a moment', async () => {
  const site = tenant();
  await site.connect('bob');
  const { client, held } = presence(site, 'alice');
  const id = ref('bob');
  let status;
  const shown = page(client, () => h({
    setup() {
      status = usePresence(id);
      return () => `${id.value}: ${status.value?.status}`;
    },
  }));
  await says(shown, 'bob: online');
  id.value = 'carol';
  assert.equal(status.value, undefined);
  assert.deepEqual([held.get('bob'), held.get('carol')], [0, 1]);
  await says(shown, 'carol: offline');
  id.value = null;
  assert.equal(status.value, undefined);
  assert.deepEqual([held.get('bob'), held.get('carol')], [0, 0]);
});

test('a hundred components with the same id make one watch at the gateway', async () => {
  const site = tenant();
  const { client, held, sent } = presence(site, 'alice');
  const count = ref(100);
  const shown = page(client, () => Array.from({ length: count.value }, (_, key) => h(Status, { of: 'bob', key })));
  await says(shown, 'bob: offline;'.repeat(100));
  assert.equal(held.get('bob'), 100);
  count.value = 1;
  await nextTick();
  assert.equal(held.get('bob'), 1);
  await site.connect('bob');
  await says(shown, 'bob: online;');
  assert.equal(asked(sent, 'watch-users', 'bob'), 1);
  assert.equal(asked(sent, 'unwatch-users', 'bob'), 0);
});

test('all that show a user change in the same turn, and what they have is the client\'s own object', async () => {
  const site = tenant();
  const { client } = presence(site, 'alice');
  const statuses = [];
  const Kept = {
    setup() {
      const status = usePresence('bob');
      statuses.push(status);
      return () => `${status.value?.status};`;
    },
  };
  const shown = page(client, () => [h(Kept), h(Kept)]);
  await says(shown, 'offline;offline;');
  let different = 0;
  client.on('change', () => { if (statuses[0].value !== statuses[1].value) different += 1; });
  await site.connect('bob');
  await says(shown, 'online;online;');
  assert.equal(different, 0);
  assert.equal(statuses[0].value, client.get('bob'));
});

test('a user is watched until the scope ends that asked for them', async () => {
  const site = tenant();
  await site.connect('bob');
  const { client, held } = presence(site, 'alice');
  const { app } = page(client, () => null);
  const scope = effectScope();
  const status = app.runWithContext(() => scope.run(() => usePresence('bob')));
  await eventually(() => status.value?.online, 'bob is online');
  scope.stop();
  assert.equal(held.get('bob'), 0);
});

test('the state of the connection is there to be shown', async () => {
  const { client, held } = presence(tenant(), 'alice', { connect: false });
  const shown = page(client, () => h({
    setup() {
      const state = usePresenceState();
      return () => state.value;
    },
  }));
  assert.equal(shown.text(), 'closed');
  client.connect();
  await says(shown, 'connected');
  client.close();
  await says(shown, 'closed');
  assert.equal(held.get('state'), 1);
  shown.unmount();
  assert.equal(held.get('state'), 0);
});

test('without the plugin a component is told what is missing, and without a client it knows nobody', () => {
  const bare = createApp({ render: () => h(Status, { of: 'bob' }) });
  bare.config.warnHandler = () => {};
  assert.throws(() => bare.mount(document.createElement('div')), /createPresence\(client\)/);
  const Who = { setup: () => { const [who, state] = [usePresenceClient(), usePresenceState()]; return () => `${who} ${state.value}`; } };
  const shown = page(undefined, () => [h(Status, { of: 'bob' }), h(Who)]);
  assert.equal(shown.text(), 'bob: unknown;null closed');
});
