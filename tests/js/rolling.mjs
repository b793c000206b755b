// Many of the real client, which live through restarts of every node. Run by test_rolling_restart.py, which leads them
// by lines of JSON: ["start", [[name, token, kind, watched], …]], ["ask", number, name, ids], or ["leave", name]. What
// happens to a client is said as [name, what, payload]; users who come online are not, until ["settled"].

import { createInterface } from 'node:readline';

import { io } from 'socket.io-client';
import WebSocket from 'ws';

const { GATEWAY_URL } = process.env;
const PRESENCE = ['user-online', 'user-offline', 'user-status-changed'];
const STEP = 20000; // milliseconds that anything may take on a busy machine
const TRANSPORTS = { websocket: ['websocket'], polling: ['polling'], upgrading: ['polling', 'websocket'] };

const clients = new Map();
let settled = false;
const say = (...words) => console.log(JSON.stringify(words));

function hear(name, event, payload) {
  if (PRESENCE.includes(event) && (settled || event !== 'user-online')) say(name, event, payload);
  if (event === 'server-draining') say(name, event, payload);
}

function overSocketIO(name, token, kind, watched) {
  const socket = io(`${GATEWAY_URL}/ws/messages`, {
    forceNew: true, transports: TRANSPORTS[kind], auth: { token }, timeout: STEP,
  });
  socket.onAny((event, payload) => hear(name, event, payload));
  socket.on('connected', () => {
    say(name, 'up', { recovered: socket.recovered });
    if (watched.length && !socket.recovered) socket.emit('watch-users', { userIds: watched });
  });
  socket.on('disconnect', (reason) => say(name, 'down', { reason }));
  socket.on('connect_error', (error) => say(name, 'refused', { why: error.data?.code ?? error.message }));
  return {
    ask: (userIds) => socket.timeout(STEP).emitWithAck('check-users-status', { userIds }).then(({ data }) => data),
    leave: () => socket.disconnect(),
  };
}

/** As a client of one's own does it: it goes by `retryAfter`, and else waits for a second. */
function overWebSocket(name, token) {
  let socket;
  let left = false;
  const waiting = new Map();
  const open = () => {
    let pause = 1;
    socket = new WebSocket(`${GATEWAY_URL.replace('http', 'ws')}/ws?token=${token}`);
    socket.on('error', (error) => say(name, 'refused', { why: error.message }));
    socket.on('message', (text) => {
      const { event, data, id } = JSON.parse(text);
      if (event === 'connected') say(name, 'up', {});
      if (event === 'server-draining') pause = data.retryAfter;
      if (waiting.has(id)) waiting.get(id)(data);
      else hear(name, event, data);
    });
    socket.on('close', (code) => {
      say(name, 'down', { reason: code });
      if (!left) setTimeout(open, pause * 1000);
    });
  };
  open();
  return {
    ask: (userIds) => new Promise((resolve) => {
      waiting.set(waiting.size + 1, resolve);
      socket.send(JSON.stringify({ event: 'check-users-status', data: { userIds }, id: waiting.size }));
    }),
    leave: () => {
      left = true;
      socket.close(1000);
    },
  };
}

const commands = {
  start(all) {
    for (const [name, token, kind, watched] of all) {
      clients.set(name, kind === 'plain' ? overWebSocket(name, token) : overSocketIO(name, token, kind, watched));
    }
  },
  settled: () => { settled = true; },
  async ask(number, name, userIds) {
    say(name, `answer ${number}`, await clients.get(name).ask(userIds).catch((error) => ({ error: String(error) })));
  },
  leave: (name) => clients.get(name).leave(),
};

for await (const line of createInterface({ input: process.stdin })) {
  const [command, ...words] = JSON.parse(line);
  commands[command](...words);
}
process.exit(0);
