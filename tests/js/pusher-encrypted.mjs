// pusher-js with encryption, which its build for Node has, in a channel that only its clients and the backend can read.
// It says what it hears as lines of JSON, and sends a client event for each line on its standard input.

import { createInterface } from 'node:readline';

import Pusher from 'pusher-js';

const { CHANNEL, GATEWAY_URL, PUSHER_KEY, TOKEN } = process.env;
const url = new URL(GATEWAY_URL);
const say = (...line) => console.log(JSON.stringify(line));
const pusher = new Pusher(PUSHER_KEY, {
  cluster: 'any',
  wsHost: url.hostname,
  wsPort: url.port,
  forceTLS: false,
  enabledTransports: ['ws'],
  disableStats: true,
  channelAuthorization: {
    endpoint: new URL('/broadcasting/auth', url).href,
    headers: { Authorization: `Bearer ${TOKEN}` },
  },
});
const channel = pusher.subscribe(CHANNEL);
channel.bind_global((event, data) => say(event, data ?? null));
pusher.connection.bind('message', (frame) => say('frame', frame));
const lines = createInterface({ input: process.stdin });
lines.on('line', (event) => {
  // pusher-js itself refuses to trigger in an encrypted channel; a client of another make might not.
  pusher.connection.send_event(event, { on: true }, CHANNEL);
});
lines.on('close', () => {
  pusher.disconnect();
  process.exit(0);
});
