// One client that loses its connection and comes back: it says what it hears, and does what it is told, in lines of JSON.
// Run by test_js_recovery.py, which stands between it and the gateways.

import { createInterface } from 'node:readline';

import { start, sign } from './client.mjs';

const { RECOVERY_USER, RECOVERY_TENANT } = process.env;
const say = (...words) => console.log(JSON.stringify(words));
const token = (user) => sign({ sub: user, tenant: RECOVERY_TENANT });

const client = start({ auth: { token: token(RECOVERY_USER) }, timeout: 2000 });
const { socket } = client;
socket.onAny((event, ...args) => {
  if (typeof args.at(-1) === 'function') args.pop()(); // what waited for its user is acknowledged
  say(event, args);
});
socket.on('connect', () => say('connect', { id: socket.id, pid: socket._pid ?? null, recovered: Boolean(socket.recovered) }));
socket.on('disconnect', (reason) => say('disconnect', reason));
socket.on('connect_error', (error) => say('connect_error', error.message));

const commands = {
  lose: () => client.lose(),
  disconnect: () => socket.disconnect(),
  connect: () => socket.connect(),
  become: (user) => { socket.auth = { token: token(user) }; },
  claim: (pid) => { socket._pid = pid; },
  ask: async (event, payload) => say('answer', await socket.timeout(5000).emitWithAck(event, payload)),
  heartbeat: async () => say('answer', await socket.timeout(5000).emitWithAck('heartbeat')),
};

const input = createInterface({ input: process.stdin });
input.on('line', (line) => {
  const [command, ...args] = JSON.parse(line);
  commands[command](...args);
});
input.on('close', () => socket.disconnect());
