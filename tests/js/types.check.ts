// What a page may write, by the types alone; run by test_js_presence.py, and never executed.

import { io } from "socket.io-client";

import { PresenceClient, PresenceError, type OnlineUsers, type State, type Status } from "../../static/presence-client.js";
import { PresenceDot, setPresence } from "../../static/presence-dot.js";

const presence = new PresenceClient({ getToken: () => "token" });
new PresenceClient({ url: "https://x", path: "/s/", io, getToken: async () => "token", share: false, heartbeat: 10 });
presence.connect();

const state: State = presence.state;
const status: Status | undefined = presence.get("bob");
const words: "online" | "away" | "busy" | "dnd" | "offline" | undefined = status?.status;
const unwatch: () => void = presence.watch(["bob", "carol"] as const, ({ userId, statusText }) => [userId, statusText?.length]);
presence.watch("bob");
const done: Promise<void> = presence.setStatus("invisible", { text: "gone", expiresIn: 60 });
const page: Promise<OnlineUsers> = presence.whoIsOnline({ limit: 10 });
page.then(({ users }) => users[0]?.name?.length);
const stop: () => void = presence.on("change", (changed: Status) => changed.version + 1);
presence.on("state", (now: State) => now === "refused");
presence.on("error", (error: PresenceError) => error.code + (error.retryAfter ?? 0));
setPresence(presence);
const dot: PresenceDot = document.createElement("presence-dot");
dot.userId = "bob";
PresenceDot.words.away = "abwesend";
presence.close();

// @ts-expect-error - there is no way to get a token
new PresenceClient({});
// @ts-expect-error - it is what the gateway says
presence.state = "connected";
// @ts-expect-error - the gateway says who is offline
presence.setStatus("offline");
// @ts-expect-error - a status is not changed
status!.status = "away";
// @ts-expect-error - there is no such event
presence.on("changes", () => {});
// @ts-expect-error - a user id is a string
presence.watch(7);
// @ts-expect-error - a dot is told whom it shows
dot.status = "away";

export { done, state, stop, unwatch, words };
