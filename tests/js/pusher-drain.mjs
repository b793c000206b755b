// pusher-js, which says what becomes of its connection as lines of JSON, until its standard input ends.

import Pusher from 'pusher-js';

const url = new URL(process.env.GATEWAY_URL);
const say = (...line) => console.log(JSON.stringify(line));
const pusher = new Pusher(process.env.PUSHER_KEY, {
  cluster: 'any', wsHost: url.hostname, wsPort: url.port, forceTLS: false, enabledTransports: ['ws'], disableStats: true,
});
say('connecting', null); // as it is by now
pusher.connection.bind('state_change', ({ current }) => say(current, null));
let told = false;
pusher.connection.bind('error', (error) => {
  const code = error.data?.code ?? error.error?.data?.code;
  if (code && !told) say('error', code);
  told ||= Boolean(code);
});
process.stdin.resume();
process.stdin.on('end', () => {
  pusher.disconnect();
  process.exit(0);
});
