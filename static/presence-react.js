/*
 * Presence gateway: who is online, in React 19. An ES module; its types and their documentation are in
 * presence-react.d.ts.
 *
 *   const presence = new PresenceClient({ getToken });
 *   presence.connect();
 *   root.render(<PresenceProvider client={presence}><App /></PresenceProvider>);
 *
 *   const status = usePresence('bob'); // in a component
 */

'use client'; // to React's servers: what imports it is for browsers, where hooks are

import { createContext, createElement, useCallback, useContext, useSyncExternalStore } from 'react';

const Presence = createContext(undefined);

const nothing = () => {};
const unknown = () => undefined;
const closed = () => 'closed';

export function PresenceProvider({ client, children }) {
  return createElement(Presence.Provider, { value: client ?? null }, children);
}

export function usePresenceClient() {
  const client = useContext(Presence);
  if (client === undefined) throw new Error('presence is for components inside of <PresenceProvider client={…}>');
  return client;
}

export function usePresence(userId) {
  const client = usePresenceClient();
  const watched = client && userId ? userId : null;
  const subscribe = useCallback((changed) => (watched === null ? nothing : client.watch(watched, changed)), [client, watched]);
  return useSyncExternalStore(subscribe, () => (watched === null ? undefined : client.get(watched)), unknown);
}

export function usePresenceState() {
  const client = usePresenceClient();
  const subscribe = useCallback((changed) => (client ? client.on('state', changed) : nothing), [client]);
  return useSyncExternalStore(subscribe, () => (client ? client.state : 'closed'), closed);
}
