// How a page uses presence-vue.js with Vue's own types; compiled by test_types.py, never run.

import { createApp, ref, type ComputedRef } from "vue";
import { PresenceClient, type Status } from "../../static/presence-client.js";
import { createPresence, usePresence, usePresenceClient, usePresenceState } from "../../static/presence-vue.js";

const client = new PresenceClient({ getToken: () => "…" });

createApp({}).use(createPresence(client));
createApp({}).use(createPresence(null));
// @ts-expect-error - it is the client
createPresence("https://presence.example.com");

export function setup(props: { userId?: string }): ComputedRef<Status | undefined> {
  const status = usePresence(() => props.userId);
  usePresence(ref("bob")).value?.lastActive satisfies string | null | undefined;
  usePresenceState().value satisfies string;
  usePresenceClient()?.watch(["alice", "bob"])();
  // @ts-expect-error - it may not be known yet
  status.value.online;
  // @ts-expect-error - nobody but the gateway says who is online
  status.value = undefined;
  // @ts-expect-error - an id is a string
  usePresence(ref(7));
  return status;
}
