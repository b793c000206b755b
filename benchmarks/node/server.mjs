// What the gateway is measured against: the contract's main requests on Node's socket.io, as its users write them.
// The same names, answers and broadcasts; no grace period, no validation beyond types, no rate limits, no log.
import { createServer } from 'node:http';
import jwt from 'jsonwebtoken';
import { Server } from 'socket.io';

const { HOST, PORT, JWT_SECRET } = process.env;
const http = createServer();
const io = new Server(http, { perMessageDeflate: false });
const messages = io.of('/ws/messages');
const users = new Map();

const now = () => new Date().toISOString();

const OFFLINE = { online: false, status: 'offline', statusText: null, lastActive: null, connectedAt: null, version: 0 };

function status(userId) {
  const user = users.get(userId);
  return user === undefined ? { userId, ...OFFLINE } : user.status;
}

function connected(userId, socket, quiet) {
  let user = users.get(userId);
  if (user === undefined) {
    user = { sockets: new Set(), status: { userId, ...OFFLINE } };
    users.set(userId, user);
  }
  user.sockets.add(socket.id);
  const timestamp = now();
  socket.emit('connected', { userId, socketId: socket.id, timestamp, reconnect: false });
  if (user.sockets.size > 1) return;
  const version = user.status.version + 1;
  Object.assign(user.status, { online: true, status: 'online', lastActive: timestamp, connectedAt: timestamp, version });
  if (quiet) return; // the benchmark fills the room: no storm is measured
  socket.broadcast.emit('user-online', { userId, online: true, status: 'online', timestamp, version });
}

function disconnected(userId, socket) {
  const user = users.get(userId);
  user.sockets.delete(socket.id);
  if (user.sockets.size > 0) return;
  const version = user.status.version + 1;
  Object.assign(user.status, { online: false, status: 'offline', connectedAt: null, version });
  const { lastActive } = user.status;
  messages.emit('user-offline', { userId, online: false, status: 'offline', lastActive, timestamp: now(), version });
}

const invalid = (message) => ({ event: 'error', error: { code: 'INVALID_PAYLOAD', message } });

// Every request counts as activity, as it does in the gateway.
function active(userId) {
  const timestamp = now();
  users.get(userId).status.lastActive = timestamp;
  return timestamp;
}

messages.use((socket, next) => {
  jwt.verify(socket.handshake.auth.token, JWT_SECRET, { algorithms: ['HS256'] }, (error, claims) => {
    if (error) {
      next(Object.assign(new Error(error.message), { data: { code: 'TOKEN_INVALID', message: error.message } }));
    } else {
      socket.data.userId = claims.sub;
      socket.data.quiet = claims.quiet;
      next();
    }
  });
});

messages.on('connection', (socket) => {
  const { userId, quiet } = socket.data;
  connected(userId, socket, quiet);
  socket.on('disconnect', () => disconnected(userId, socket));
  socket.on('heartbeat', (...args) => {
    const timestamp = active(userId);
    args.at(-1)({ event: 'heartbeat-ack', data: { timestamp, lastActive: timestamp } });
  });
  socket.on('check-user-status', (query, acknowledge) => {
    if (typeof query?.userId !== 'string') return acknowledge(invalid('userId must be a string'));
    const timestamp = active(userId);
    acknowledge({ event: 'user-status', data: { ...status(query.userId), timestamp } });
  });
  socket.on('check-users-status', (query, acknowledge) => {
    if (!Array.isArray(query?.userIds)) return acknowledge(invalid('userIds must be a list'));
    const timestamp = active(userId);
    acknowledge({ event: 'users-status', data: { statuses: query.userIds.map(status), timestamp } });
  });
});

// Asked for before memory is read, so that what counts is what connections hold, not what waits to be collected.
process.on('SIGUSR2', () => globalThis.gc());

http.listen(Number(PORT), HOST);
