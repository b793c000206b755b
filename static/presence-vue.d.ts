import type { ComputedRef, MaybeRefOrGetter, Plugin } from "vue";
import type { PresenceClient, State, Status } from "./presence-client.js";

/**
 * A plugin that gives an app's components a client: `app.use(createPresence(client))`. The client is the page's: made,
 * connected and closed by it. Null, as on a server or before anybody has logged in, is nobody's presence.
 */
export function createPresence(client: PresenceClient | null | undefined): Plugin;

/** The app's client; throws where `createPresence` is not used. Null where that has been given none. */
export function usePresenceClient(): PresenceClient | null;

/**
 * A user's presence, live. The user is watched until the scope ends that this is called in: a component's, mostly. A
 * ref or a getter may name another user at any time.
 *
 * Undefined while it is not known yet, on a server, and without an id. The same object until something of it changes.
 */
export function usePresence(userId: MaybeRefOrGetter<string | null | undefined>): ComputedRef<Status | undefined>;

/** How the client's connection is, live; `closed` on a server, and without a client. */
export function usePresenceState(): ComputedRef<State>;
