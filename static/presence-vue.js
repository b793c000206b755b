/*
 * Presence gateway: who is online, in Vue 3. An ES module; its types and their documentation are in
 * presence-vue.d.ts.
 *
 *   const presence = new PresenceClient({ getToken });
 *   presence.connect();
 *   createApp(App).use(createPresence(presence)).mount('#app');
 *
 *   const status = usePresence('bob'); // in a component's setup
 */

import { computed, inject, onScopeDispose, shallowRef, toValue, watch } from 'vue';

const PRESENCE = Symbol('presence');

/** A server renders once: whoever is watched there would be so for ever. */
const isServer = () => typeof window === 'undefined';

export function createPresence(client) {
  return {
    install(app) {
      app.provide(PRESENCE, client ?? null);
    },
  };
}

export function usePresenceClient() {
  const client = inject(PRESENCE, undefined);
  if (client === undefined) throw new Error('presence is for components of an app that has app.use(createPresence(client))');
  return client;
}

export function usePresence(userId) {
  const client = usePresenceClient();
  const status = shallowRef();
  if (client && !isServer()) {
    const follow = (id, _before, onCleanup) => {
      status.value = id ? client.get(id) : undefined;
      if (id) onCleanup(client.watch(id, (now) => { status.value = now; }));
    };
    // At once: with another id nobody reads what is another user's.
    watch(() => toValue(userId), follow, { immediate: true, flush: 'sync' });
  }
  return computed(() => status.value);
}

export function usePresenceState() {
  const client = usePresenceClient();
  if (!client || isServer()) return computed(() => 'closed');
  const state = shallowRef(client.state);
  onScopeDispose(client.on('state', (now) => { state.value = now; }));
  return computed(() => state.value);
}
