// What goes over the namespace /ws/messages, as types for socket.io-client. Generated from the types that the gateway
// checks and encodes by: python -m gateway schema types > static/presence-events.d.ts
//
//     import { io, type Socket } from "socket.io-client";
//     import type { ClientToServerEvents, ServerToClientEvents } from "./presence-events.js";
//
//     const socket: Socket<ServerToClientEvents, ClientToServerEvents> = io("/ws/messages", {
//       auth: { token },
//       ackTimeout: 5000, // milliseconds; what .timeout(5000).emitWithAck() returns is any, by the client's own types
//     });

/** ack: a client has what waited for its user, and was sent with this id, or with these. */
export type Ack =
  | { id: string; ids?: string[] }
  | { ids: string[]; id?: string | null };

/** The answer to ack. */
export interface Acknowledged {
  /** How many ids it had; what does not wait any more is among them. */
  count: number;
}

/** Who sent a message, as the token says. */
export interface Author {
  id: string;
  name: string | null;
  avatar: string | null;
  role: string | null;
}

/** One event of a channel's history. */
export interface ChannelEvent {
  event: string;
  data: any;
  position: string;
  /** ISO-8601, UTC, with milliseconds. */
  timestamp: string;
}

/** One member of a presence channel. */
export interface ChannelMember {
  userId: string;
  /** What is said of them besides the id; an empty object where that is nothing. */
  info: Record<string, any>;
}

/** channel-members: who is in a presence channel, for a client that missed who came and went. */
export interface ChannelMembers {
  channel: string;
  members: ChannelMember[];
}

/** check-user-status. */
export interface CheckUserStatus {
  /** 1 to 128 characters without control characters. */
  userId: string;
}

/** check-users-status. */
export interface CheckUsersStatus {
  userIds: string[];
}

/** A status that a user can set by hand. */
export type Chosen = "away" | "busy" | "dnd" | "invisible" | "online";

/** connected: the first event of a connection. */
export interface Connected {
  userId: string;
  socketId: string;
  /** ISO-8601, UTC, with milliseconds. */
  timestamp: string;
  /** True where the user had lost the last connection and came back within the grace. */
  reconnect: boolean;
}

/** A message to a user, or in a conversation. */
export interface DirectMessage {
  id: string;
  content: string;
  sender_id: string;
  /** Null in a conversation that is not of two. */
  recipient_id: string | null;
  is_read: boolean;
  /** ISO-8601, UTC, with milliseconds. */
  created_at: string;
  sender: Author;
}

/** Why a request failed. */
export interface ErrorBody {
  code: ErrorCode;
  message: string;
  /** Seconds after which the request may be sent again. */
  retryAfter?: number;
}

/** Why a request failed. */
export type ErrorCode = "FORBIDDEN" | "INTERNAL" | "INVALID_PAYLOAD" | "NOT_FOUND" | "RATE_LIMITED" | "UNAVAILABLE" | "UNKNOWN_EVENT";

/** exception: a failure for a client that asked for no acknowledgement. */
export interface ExceptionEvent {
  event: string;
  code: ErrorCode;
  message: string;
  retryAfter?: number;
}

/** The acknowledgement of a request that failed. */
export interface Failure {
  event: "error";
  error: ErrorBody;
}

/** get-online-users: one page of the tenant's online users, ordered by id. */
export interface GetOnlineUsers {
  limit?: number;
  /** The nextCursor of the page before; null for the first page. */
  cursor?: string | null;
}

/** heartbeat. */
export interface Heartbeat {
  meta?: Record<string, any> | null;
}

/** The answer to a heartbeat. */
export interface HeartbeatAck {
  /** ISO-8601, UTC, with milliseconds. */
  timestamp: string;
  /** ISO-8601, UTC, with milliseconds. */
  lastActive: string;
}

/** join-channel. */
export interface JoinChannel {
  channel: string;
  /** The position of the last event of the channel that the client has; 0 for all that is kept, null for nothing. */
  since?: string | null;
}

/** join-conversation. */
export interface JoinConversation {
  conversationId: string;
  since?: string | null;
}

/** The answer to join-channel. */
export interface JoinedChannel {
  channel: string;
  /** Of a presence channel, who is in it, by user id. */
  members?: ChannelMember[];
  /** Where since was given: what was said after it, oldest first. */
  history?: ChannelEvent[];
  /** Whether nothing is missing between since and the history's first event. */
  recovered?: boolean;
  /** Up to where the history goes: the next since. */
  position?: string;
}

/** The answer to join-conversation. */
export interface JoinedConversation {
  channel: string;
  /** Of a presence channel, who is in it, by user id. */
  members?: ChannelMember[];
  /** Where since was given: what was said after it, oldest first. */
  history?: ChannelEvent[];
  /** Whether nothing is missing between since and the history's first event. */
  recovered?: boolean;
  /** Up to where the history goes: the next since. */
  position?: string;
  conversationId: string;
}

/** leave-channel. */
export interface LeaveChannel {
  channel: string;
}

/** leave-conversation. */
export interface LeaveConversation {
  conversationId: string;
}

/** The answer to leave-channel, and channel-left of whom a backend took out of it. */
export interface LeftChannel {
  channel: string;
}

/** The answer to leave-conversation. */
export interface LeftConversation {
  conversationId: string;
}

/** mark-read: one message, or all that a user has sent to the caller. */
export type MarkRead =
  | { messageId: string; userId?: null }
  | { userId: string; messageId?: null };

/** The answer to mark-read. */
export interface MarkedRead {
  /** How many messages are read by it that had not been. */
  count: number;
}

/** member-added and member-removed: who came into a presence channel, or went. */
export interface MemberChanged {
  userId: string;
  /** What is said of them besides the id; an empty object where that is nothing. */
  info: Record<string, any>;
  channel: string;
  /** ISO-8601, UTC, with milliseconds. */
  timestamp: string;
}

/** A message was read. */
export interface MessageRead {
  message_id: string;
  read_by: string;
  /** ISO-8601, UTC, with milliseconds. */
  read_at: string;
}

/** The answer to send-message: the message as others hear it, the first one where it was sent before. */
export interface MessageSent {
  /** As others hear it. */
  message: DirectMessage | RoomMessage;
}

/** Something happened in a room. */
export interface NewActivity {
  room_id: string;
  action: string;
  user_name: string;
  role: string | null;
  description: string | null;
  /** ISO-8601, UTC, with milliseconds. */
  timestamp: string;
}

/** A user who is online, with what their token says of them. */
export interface OnlineUser {
  /** 1 to 128 characters without control characters. */
  userId: string;
  online: boolean;
  status: Status;
  statusText: string | null;
  /** Last seen: survives going offline; null for a user never seen. */
  lastActive: string | null;
  connectedAt: string | null;
  /** Grows by one with each committed change of this user. */
  version: number;
  name?: string;
  avatar?: string;
  role?: string;
}

/** One page of the users who are online, and when it was read. */
export interface OnlineUsersAt {
  users: OnlineUser[];
  /** How many users of the tenant are online in all. */
  count: number;
  /** Asks for the next page; null on the last. */
  nextCursor: string | null;
  /** ISO-8601, UTC, with milliseconds. */
  timestamp: string;
}

/** A user's presence, as only that user is told it. */
export interface OwnUserStatus {
  /** 1 to 128 characters without control characters. */
  userId: string;
  online: boolean;
  status: Status;
  statusText: string | null;
  /** Last seen: survives going offline; null for a user never seen. */
  lastActive: string | null;
  connectedAt: string | null;
  /** Grows by one with each committed change of this user. */
  version: number;
  /** True while the user is offline to everyone else; otherwise not there. */
  invisible?: boolean;
}

/** refresh-token. */
export interface RefreshToken {
  token: string;
}

/** What the data of a connect_error says. */
export interface Refusal {
  code: RefusalCode;
  /** Why, and what to do about it. */
  message: string;
  /** Seconds after which the same client may be let in. */
  retryAfter?: number;
}

/** Why a connection was refused. */
export type RefusalCode = "INTERNAL" | "INVALID_PAYLOAD" | "RATE_LIMITED" | "SERVER_DRAINING" | "TENANT_FULL" | "TOKEN_EXPIRED" | "TOKEN_INVALID" | "TOKEN_MISSING" | "TOO_MANY_CONNECTIONS" | "UNAVAILABLE";

/** A message in a room, or any other channel. */
export interface RoomMessage {
  id: string;
  room_id: string;
  sender_role: string | null;
  sender_name: string;
  message: string;
  type: string;
  /** ISO-8601, UTC, with milliseconds. */
  created_at: string;
}

/** send-message. */
export type SendMessage = {
  content: string;
  clientId?: string | null;
} & (
  | { recipientId: string; conversationId?: null; channel?: null }
  | { conversationId: string; recipientId?: null; channel?: null }
  | { channel: string; recipientId?: null; conversationId?: null }
);

/** token-expired and server-draining. */
export interface ServerEvent {
  /** ISO-8601, UTC, with milliseconds. */
  timestamp: string;
  /** Seconds to wait before connecting again. */
  retryAfter?: number;
}

/** set-status. */
export interface SetStatus {
  /** online is back to what activity says; invisible is offline to everyone else. */
  status: Chosen;
  /** What others read beside the status, without control characters; null or empty for none. */
  statusText?: string | null;
  /** Seconds after which it is as if nothing had been set; null for until it is changed. */
  expiresIn?: number | null;
}

/** A user's status, as others see it. */
export type Status = "away" | "busy" | "dnd" | "offline" | "online";

/** The answer to refresh-token. */
export interface TokenRefreshed {
  /** Null for a token that does not expire. */
  expiresAt: string | null;
}

/** typing. */
export type Typing = {
  isTyping: boolean;
} & (
  | { recipientId: string; conversationId?: null; channel?: null }
  | { conversationId: string; recipientId?: null; channel?: null }
  | { channel: string; recipientId?: null; conversationId?: null }
);

/** The answer to typing. */
export interface TypingSent {
}

/** unwatch-users. */
export interface UnwatchUsers {
  /** Null for all. */
  userIds?: string[] | null;
}

/** The answer to unwatch-users. */
export interface Unwatched {
  /** How many users are no longer watched. */
  count: number;
}

/** user-offline. */
export interface UserOffline {
  userId: string;
  online: boolean;
  status: Status;
  lastActive: string | null;
  /** ISO-8601, UTC, with milliseconds. */
  timestamp: string;
  version: number;
}

/** user-online. */
export interface UserOnline {
  userId: string;
  online: boolean;
  status: Status;
  /** ISO-8601, UTC, with milliseconds. */
  timestamp: string;
  version: number;
  name?: string;
  avatar?: string;
}

/** A user's presence. */
export interface UserStatus {
  /** 1 to 128 characters without control characters. */
  userId: string;
  online: boolean;
  status: Status;
  statusText: string | null;
  /** Last seen: survives going offline; null for a user never seen. */
  lastActive: string | null;
  connectedAt: string | null;
  /** Grows by one with each committed change of this user. */
  version: number;
}

/** A user's presence, and when it was read. */
export interface UserStatusAt {
  /** 1 to 128 characters without control characters. */
  userId: string;
  online: boolean;
  status: Status;
  statusText: string | null;
  /** Last seen: survives going offline; null for a user never seen. */
  lastActive: string | null;
  connectedAt: string | null;
  /** Grows by one with each committed change of this user. */
  version: number;
  /** ISO-8601, UTC, with milliseconds. */
  timestamp: string;
}

/** Many users' presence, in the order asked. */
export interface UserStatuses {
  statuses: UserStatus[];
  /** ISO-8601, UTC, with milliseconds. */
  timestamp: string;
}

/** Somebody types, or does so no more. */
export interface UserTyping {
  user_id: string;
  user_name: string;
  is_typing: boolean;
  /** ISO-8601, UTC, with milliseconds. */
  timestamp: string;
}

/** watch-users. */
export interface WatchUsers {
  userIds: string[];
}

/** What a request that succeeded is acknowledged with. */
export interface Success<Event extends string, Data> {
  event: Event;
  data: Data;
}

/** What a request is acknowledged with: `event` tells which of the two it is. */
export type Answer<Event extends string, Data> = Success<Event, Data> | Failure;

/** What takes a request's acknowledgement. */
export type Acknowledge<Event extends string, Data> = (answer: Answer<Event, Data>) => void;

/** Why a connection was refused, as socket.io-client's `connect_error` has it. */
export type ConnectError = Error & { data?: Refusal };

/** What a client asks for, by name. */
export interface ClientToServerEvents {
  /** Asks for the presence of one user. */
  "check-user-status": (payload: CheckUserStatus, acknowledge: Acknowledge<"user-status", UserStatusAt>) => void;
  /** Asks for the presence of many users. */
  "check-users-status": (payload: CheckUsersStatus, acknowledge: Acknowledge<"users-status", UserStatuses>) => void;
  /** Asks who is online, page by page. */
  "get-online-users": (...request: [payload: GetOnlineUsers, acknowledge: Acknowledge<"online-users", OnlineUsersAt>] | [acknowledge: Acknowledge<"online-users", OnlineUsersAt>]) => void;
  /** Watches users: from then on this connection hears of those it watches only, and misses none of their changes after what it is answered. */
  "watch-users": (payload: WatchUsers, acknowledge: Acknowledge<"watching", UserStatuses>) => void;
  /** Watches users no more: these, or all. */
  "unwatch-users": (...request: [payload: UnwatchUsers, acknowledge: Acknowledge<"unwatched", Unwatched>] | [acknowledge: Acknowledge<"unwatched", Unwatched>]) => void;
  /** Says that the user is active. */
  "heartbeat": (...request: [payload: Heartbeat, acknowledge: Acknowledge<"heartbeat-ack", HeartbeatAck>] | [acknowledge: Acknowledge<"heartbeat-ack", HeartbeatAck>]) => void;
  /** Sets one's own status by hand; answered as its owner sees it. */
  "set-status": (payload: SetStatus, acknowledge: Acknowledge<"status-set", OwnUserStatus>) => void;
  /** Brings a newer token of the same user. */
  "refresh-token": (payload: RefreshToken, acknowledge: Acknowledge<"token-refreshed", TokenRefreshed>) => void;
  /** Says that what had waited for the user has arrived, where the client cannot acknowledge the event itself. */
  "ack": (payload: Ack, acknowledge: Acknowledge<"acknowledged", Acknowledged>) => void;
  /** Comes into a channel. */
  "join-channel": (payload: JoinChannel, acknowledge: Acknowledge<"joined-channel", JoinedChannel>) => void;
  /** Goes out of a channel. */
  "leave-channel": (payload: LeaveChannel, acknowledge: Acknowledge<"left-channel", LeftChannel>) => void;
  /** Comes into the channel of a conversation of two. */
  "join-conversation": (payload: JoinConversation, acknowledge: Acknowledge<"joined-conversation", JoinedConversation>) => void;
  /** Goes out of the channel of a conversation. */
  "leave-conversation": (payload: LeaveConversation, acknowledge: Acknowledge<"left-conversation", LeftConversation>) => void;
  /** Sends a message to a user, in a conversation, or in a channel. */
  "send-message": (payload: SendMessage, acknowledge: Acknowledge<"message-sent", MessageSent>) => void;
  /** Marks a message as read, or all that a user has sent to the caller. */
  "mark-read": (payload: MarkRead, acknowledge: Acknowledge<"marked-read", MarkedRead>) => void;
  /** Says that the caller types, or does so no more. */
  "typing": (payload: Typing, acknowledge: Acknowledge<"typing-sent", TypingSent>) => void;
}

/** What a client is told, by name. Names of your own backend's go into an interface that extends this one. */
export interface ServerToClientEvents {
  /** The first event of a connection. */
  "connected": (data: Connected) => void;
  /** A user came online. */
  "user-online": (data: UserOnline) => void;
  /** A user went offline. */
  "user-offline": (data: UserOffline) => void;
  /** A user is online in another way, or says another text. */
  "user-status-changed": (data: UserStatusAt) => void;
  /** A user came into a presence channel. */
  "member-added": (data: MemberChanged) => void;
  /** A user went out of a presence channel. */
  "member-removed": (data: MemberChanged) => void;
  /** Who is in a presence channel, for a client that missed who came and went. */
  "channel-members": (data: ChannelMembers) => void;
  /** This client was taken out of a channel. */
  "channel-left": (data: LeftChannel) => void;
  /** A message was sent. */
  "new-message": (data: DirectMessage | RoomMessage) => void;
  /** A message was read. */
  "message-read": (data: MessageRead) => void;
  /** Somebody types, or does so no more. */
  "user-typing": (data: UserTyping) => void;
  /** Something happened in a room. */
  "new-activity": (data: NewActivity) => void;
  /** What a backend had to say to the user; it may choose other names for it, too. What had waited for the user comes with an id, and waits until it is acknowledged. */
  "notification": (data: any, id?: string, acknowledge?: () => void) => void;
  /** The token ran out: refresh-token keeps the connection. */
  "token-expired": (data: ServerEvent) => void;
  /** This node shuts down: connect again, to another one. */
  "server-draining": (data: ServerEvent) => void;
  /** A request failed whose client asked for no acknowledgement. */
  "exception": (data: ExceptionEvent) => void;
}
