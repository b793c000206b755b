// Many of the real client, each from an address of its own. Run by test_load_balancers.py, which leads them by lines of
// JSON: ["start", name, options] or ["ask", name, number, event, payload]. What a client hears is said as
// [name, event, payload]. They leave when standard input ends.

import http from 'node:http';
import https from 'node:https';
import { createInterface } from 'node:readline';

import { closeAll, start } from './client.mjs';

const { Agent } = process.env.GATEWAY_URL.startsWith('https') ? https : http;
const clients = new Map();
const say = (...words) => console.log(JSON.stringify(words));

const commands = {
  start(name, { source, ...options }) {
    // A TCP connection for each request: nothing but the balancer keeps a client on its node.
    const client = start({ agent: new Agent({ localAddress: source, keepAlive: false }), ...options });
    clients.set(name, client);
    const { socket } = client;
    socket.onAny((event, payload) => say(name, event, payload));
    socket.on('connect_error', (error) => say(name, 'connect_error', { message: error.message, ...error.data, active: socket.active }));
    socket.on('disconnect', (reason) => say(name, 'disconnect', { reason, active: socket.active }));
    socket.io.on('open', () => {
      const { engine } = socket.io;
      say(name, 'open', { sid: engine.id });
      engine.on('upgrade', (transport) => say(name, 'upgrade', { name: transport.name }));
    });
  },
  async ask(name, number, event, payload) {
    say(name, `answer ${number}`, await clients.get(name).ask(event, payload).catch((error) => ({ event: String(error) })));
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const [command, ...words] = JSON.parse(line);
  commands[command](...words);
}
closeAll();
