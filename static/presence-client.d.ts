/** What a user's status can be. */
export type StatusName = "online" | "away" | "busy" | "dnd" | "offline";

/** What a user can set by hand; `online` is back to what activity says. */
export type SettableStatus = "online" | "away" | "busy" | "dnd" | "invisible";

/**
 * - `closed`: not connected, by `close()` or because `connect()` was not called yet.
 * - `connecting`: the first connection is being made.
 * - `connected`: what is known is so now.
 * - `reconnecting`: the connection was lost. What is known is how it was; what was missed comes with the next one.
 * - `refused`: the token was refused, and `getToken` gives no better. `connect()` tries again.
 */
export type State = "connecting" | "connected" | "reconnecting" | "closed" | "refused";

/**
 * A user's presence. It is immutable, and the same object until something of it changes: it can be compared by `===`,
 * as React's `useSyncExternalStore` does.
 */
export interface Status {
  readonly userId: string;
  /** True for every status but `offline`. */
  readonly online: boolean;
  readonly status: StatusName;
  /** What the user says of it; null for nothing. */
  readonly statusText: string | null;
  /** Last seen: survives going offline. ISO-8601 in UTC; null for a user never seen. Others' activity alone does not update it. */
  readonly lastActive: string | null;
  /** Since when the user is online, ISO-8601 in UTC; null while offline. */
  readonly connectedAt: string | null;
  /** Grows by one with each change of the user; 0 for one never seen. */
  readonly version: number;
  /** True for the user's own pages while they are invisible, and so offline to everyone else; otherwise not there. */
  readonly invisible?: boolean;
}

/** A user who is online, with what their token says of them. */
export interface OnlineUser extends Status {
  readonly name?: string;
  readonly avatar?: string;
  readonly role?: string;
}

/** One page of those who are online. */
export interface OnlineUsers {
  readonly users: readonly OnlineUser[];
  /** How many are online in all. */
  readonly count: number;
  /** Asks for the next page; null on the last. */
  readonly nextCursor: string | null;
}

/** What went wrong. */
export class PresenceError extends Error {
  constructor(code: string, message: string, retryAfter?: number);
  readonly name: "PresenceError";
  /**
   * A code of the gateway, such as `TOKEN_EXPIRED`, `INVALID_PAYLOAD`, `RATE_LIMITED` or `UNAVAILABLE`; or of the client:
   * `CLOSED`, `REFUSED`, `TIMEOUT`, `NO_CLIENT`.
   */
  readonly code: string;
  /** In how many seconds to try again, where time mends it. */
  readonly retryAfter?: number;
}

export interface PresenceOptions {
  /** Where the gateway is, as `https://presence.example.com`. The page's own origin by default. */
  url?: string;
  /** The path of its Socket.IO; `/socket.io/` by default. */
  path?: string;
  /** The `io` of socket.io-client 4.6 or newer. By default the page's `io`, or what its import map calls `socket.io-client`. */
  // eslint-disable-next-line @typescript-eslint/no-explicit-any -- so that no types of socket.io-client are needed
  io?: (url: string, options?: any) => any;
  /**
   * Gives a token of the user. It is called for the first connection, before a token ends, and where one was refused.
   * "" says that there is none: the state is `refused` then. Where it throws, it is called again after some seconds.
   */
  getToken: () => string | Promise<string>;
  /** Whether all tabs of a user share one connection, where the browser can; true by default. */
  share?: boolean;
  /**
   * Seconds between two heartbeats of a tab that is visible; 25 by default. To be less than the gateway's
   * PRESENCE_AWAY_AFTER, after which a user whose tabs are all hidden turns away.
   */
  heartbeat?: number;
}

/** Who is online, live. */
export class PresenceClient {
  /** Throws a `TypeError` for options that cannot be. Does nothing until `connect()`. */
  constructor(options: PresenceOptions);

  /** How the connection is. */
  readonly state: State;

  /** Connect, and come back by itself from then on. Changes nothing while that is so. */
  connect(): void;

  /**
   * Disconnect. Where no other tab is left the user is offline at once; a page that is only left has no need of it.
   * What is watched stays so for the next `connect()`, and what was known, for `get()`.
   */
  close(): void;

  /** What is known of a user who is watched; undefined before it was heard. The same object until it changes. */
  get(userId: string): Status | undefined;

  /**
   * Watch a user, or several, until what this returns is called. Those who are watched several times are watched until
   * the last has ended it. What is asked for in one task is sent as one request.
   *
   * The listener is called with each change from now on, and with what is first heard; `get()` has what is known already.
   * Throws a `TypeError` for what is no user id.
   */
  watch(userId: string | readonly string[], listener?: (status: Status) => void): () => void;

  /**
   * Set the user's status by hand, on all devices: with a text of up to 128 characters, and for how many seconds.
   * Waits for a connection, for 20 seconds; rejects with a `PresenceError`.
   */
  setStatus(status: SettableStatus, options?: { text?: string; expiresIn?: number }): Promise<void>;

  /** Ask for a page of those who are online now, up to 1,000 by id. Waits, and rejects, as `setStatus()` does. */
  whoIsOnline(options?: { limit?: number; cursor?: string }): Promise<OnlineUsers>;

  /** Listen until what this returns is called: to the changes of all who are watched, the state, and what goes wrong. */
  on(event: "change", listener: (status: Status) => void): () => void;
  on(event: "state", listener: (state: State) => void): () => void;
  on(event: "error", listener: (error: PresenceError) => void): () => void;
}
