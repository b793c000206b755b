// How a page uses presence-react.js with React's own types; compiled by test_types.py, never run.

import { createElement, type ReactElement } from "react";
import { PresenceClient } from "../../static/presence-client.js";
import { PresenceProvider, usePresence, usePresenceClient, usePresenceState } from "../../static/presence-react.js";

const client = new PresenceClient({ getToken: () => "…" });

export function Row({ userId }: { userId?: string }): string {
  const status = usePresence(userId);
  const state: "connecting" | "connected" | "reconnecting" | "closed" | "refused" = usePresenceState();
  usePresenceClient()?.setStatus("busy", { text: "writing", expiresIn: 60 });
  // @ts-expect-error - it may not be known yet
  status.online;
  // @ts-expect-error - it is the same for all who show it
  if (status) status.online = true;
  // @ts-expect-error - there is no such status
  if (status?.status === "invisible") return "";
  // @ts-expect-error - an id is a string
  usePresence(7);
  return `${status?.statusText ?? ""} ${state}`;
}

export const page: ReactElement = createElement(PresenceProvider, { client }, createElement(Row));
export const early: ReactElement = PresenceProvider({ client: null, children: [createElement(Row)] });
// @ts-expect-error - it is the client
export const wrong: ReactElement = createElement(PresenceProvider, { presence: client });
