import type { ReactElement, ReactNode } from "react";
import type { PresenceClient, State, Status } from "./presence-client.js";

/**
 * Gives the components inside of it a client. The client is the page's: made, connected and closed by it. Null, as on
 * a server or before anybody has logged in, is nobody's presence.
 */
export function PresenceProvider(props: { client: PresenceClient | null | undefined; children?: ReactNode }): ReactElement;

/** The client of the `<PresenceProvider>` around; throws where there is none. Null where that has been given none. */
export function usePresenceClient(): PresenceClient | null;

/**
 * A user's presence, live; the user is watched while the component is mounted.
 *
 * Undefined while it is not known yet, on a server, and without an id. The same object until something of it changes.
 */
export function usePresence(userId: string | null | undefined): Status | undefined;

/** How the client's connection is, live; `closed` on a server, and without a client. */
export function usePresenceState(): State;
