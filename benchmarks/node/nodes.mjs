// Presence over many nodes as a user of the Redis adapter writes it: a hash in Redis counts each user's connections,
// and the node on which the first comes or the last goes tells everybody through the adapter.
import { createServer } from 'node:http';
import { createAdapter } from '@socket.io/redis-adapter';
import jwt from 'jsonwebtoken';
import { createClient } from 'redis';
import { Server } from 'socket.io';

const { HOST, PORT, JWT_SECRET, REDIS_URL } = process.env;
const redis = createClient({ url: REDIS_URL });
const subscriber = redis.duplicate();
await Promise.all([redis.connect(), subscriber.connect()]);

const http = createServer();
const io = new Server(http, { perMessageDeflate: false, adapter: createAdapter(redis, subscriber) });
const messages = io.of('/ws/messages');

const now = () => new Date().toISOString();

messages.use((socket, next) => {
  jwt.verify(socket.handshake.auth.token, JWT_SECRET, { algorithms: ['HS256'] }, (error, claims) => {
    if (error) {
      next(Object.assign(new Error(error.message), { data: { code: 'TOKEN_INVALID', message: error.message } }));
    } else {
      socket.data.userId = claims.sub;
      next();
    }
  });
});

messages.on('connection', async (socket) => {
  const { userId } = socket.data;
  socket.on('disconnect', async () => {
    if ((await redis.hIncrBy('connections', userId, -1)) > 0) return;
    const timestamp = now();
    messages.emit('user-offline', { userId, online: false, status: 'offline', lastActive: timestamp, timestamp });
  });
  socket.emit('connected', { userId, socketId: socket.id, timestamp: now(), reconnect: false });
  if ((await redis.hIncrBy('connections', userId, 1)) > 1) return;
  socket.broadcast.emit('user-online', { userId, online: true, status: 'online', timestamp: now() });
});

http.listen(Number(PORT), HOST);
