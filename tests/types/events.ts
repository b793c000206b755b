// How a page uses the types with socket.io-client's own; compiled by test_types.py, never run. Where an error is
// expected, its absence is one.

import { io, type Socket } from "socket.io-client";
import type {
  Answer,
  Chosen,
  ClientToServerEvents,
  ConnectError,
  OnlineUser,
  OnlineUsersAt,
  OwnUserStatus,
  RefusalCode,
  ServerToClientEvents,
  Status,
  UserStatus,
} from "../../static/presence-events.js";
import type * as client from "../../static/presence-client.js";

const socket: Socket<ServerToClientEvents, ClientToServerEvents> = io("/ws/messages", {
  auth: { token: "…" },
  ackTimeout: 5000,
});

// Requests

export async function requests(): Promise<UserStatus[]> {
  const answer = await socket.emitWithAck("check-user-status", { userId: "alice" });
  if (answer.event === "error") {
    const code: "RATE_LIMITED" | string = answer.error.code;
    const wait: number = answer.error.retryAfter ?? 0;
    // @ts-expect-error - a failure has no data
    answer.data;
    // @ts-expect-error - there is no such code
    if (answer.error.code === "TOO_LATE") throw new Error(code);
    throw new Error(`${code}: ${answer.error.message} (${wait})`);
  }
  const status: "online" | "away" | "busy" | "dnd" | "offline" = answer.data.status;
  const seen: string | null = answer.data.lastActive;
  // @ts-expect-error - it may be null
  const always: string = answer.data.lastActive;
  // @ts-expect-error - there is no such field
  answer.data.isOnline;

  const page = await socket.emitWithAck("get-online-users");
  const next = await socket.emitWithAck("get-online-users", { limit: 10, cursor: null });
  if ("data" in page && "data" in next) page.data.users.concat(next.data.users).map(({ name }) => name?.length);
  // The client's own types make this any: it has to be said what it is.
  const late: Answer<"online-users", OnlineUsersAt> = await socket.timeout(5000).emitWithAck("get-online-users");
  if (late.event !== "error") late.data.nextCursor satisfies string | null;

  socket.emit("heartbeat", (said) => said.event);
  socket.emit("heartbeat", { meta: { page: "home" } }, () => {});
  socket.emit("set-status", { status: "busy", statusText: "writing", expiresIn: 60 }, (said) => {
    if (said.event === "status-set") said.data.invisible satisfies boolean | undefined;
  });
  socket.emit("send-message", { recipientId: "bob", content: "hello", clientId: "1" }, (said) => {
    if (said.event !== "error" && "content" in said.data.message) said.data.message.sender.name;
  });
  socket.emit("ack", { id: "1-0" }, () => {});
  socket.emit("ack", { ids: ["1-0"] }, () => {});
  socket.emit("mark-read", { userId: "bob" }, () => {});

  // @ts-expect-error - there is no such request
  await socket.emitWithAck("check-user", { userId: "alice" });
  // @ts-expect-error - it takes an object
  await socket.emitWithAck("check-user-status", "alice");
  // @ts-expect-error - it takes a userId
  await socket.emitWithAck("check-user-status", { id: "alice" });
  // @ts-expect-error - nobody sets this
  await socket.emitWithAck("set-status", { status: "offline" });
  // @ts-expect-error - a message is for somebody
  await socket.emitWithAck("send-message", { content: "hello" });
  // @ts-expect-error - a message is for one of them
  await socket.emitWithAck("send-message", { content: "hello", recipientId: "bob", channel: "room-5" });
  // @ts-expect-error - one of the two
  await socket.emitWithAck("mark-read", {});
  // @ts-expect-error - one of the two, at least
  await socket.emitWithAck("ack", {});
  // @ts-expect-error - this is answered with unwatched
  await socket.emitWithAck("unwatch-users").then((said) => said.event === "watching");

  const watching = await socket.emitWithAck("watch-users", { userIds: ["alice", "bob"] });
  return watching.event === "error" ? [] : watching.data.statuses.filter(() => status && seen && always);
}

// Events

socket.on("user-online", ({ userId, name, version }) => `${userId} ${name?.length} ${version + 1}`);
socket.on("user-status-changed", ({ statusText }) => statusText?.length);
socket.on("member-added", ({ channel, info }) => `${channel} ${info.name}`);
socket.on("new-message", (message) => ("room_id" in message ? message.sender_name : message.sender.name));
socket.on("notification", (data: { title: string }, id, acknowledge) => {
  if (acknowledge) acknowledge();
  return `${data.title} ${id?.length}`;
});
socket.on("server-draining", ({ retryAfter }) => (retryAfter ?? 0) * 1000);
socket.on("connect_error", (error: ConnectError) => {
  const code: RefusalCode | undefined = error.data?.code;
  // @ts-expect-error - there is no such code
  return code === "TOKEN_LOST";
});

// @ts-expect-error - there is no such event
socket.on("user-on-line", () => {});
// @ts-expect-error - there is no such field
socket.on("user-offline", ({ name }) => name);
// @ts-expect-error - it is text
socket.on("user-offline", ({ timestamp }) => timestamp.getTime());

// A backend's own names

interface Told extends ServerToClientEvents {
  "order-shipped": (order: { number: number }) => void;
}
const shop: Socket<Told, ClientToServerEvents> = io("/ws/messages");
shop.on("order-shipped", ({ number }) => number + 1);
shop.on("user-online", ({ userId }) => userId);
// @ts-expect-error - this shop has none
shop.on("order-lost", () => {});

// What presence-client.d.ts says by hand

type Same<A, B> = [A, B] extends [B, A] ? true : never;
export const same: [
  Same<client.StatusName, Status>,
  Same<client.SettableStatus, Chosen>,
  Same<client.Status, OwnUserStatus>,
  Same<client.OnlineUser, OnlineUser & { invisible?: boolean }>,
] = [true, true, true, true];
