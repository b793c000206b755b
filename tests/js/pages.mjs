// Pages in a presence channel, each of Laravel Echo over socket.io-client or of pusher-js, each at a node of its own.
// It does what lines of JSON on its standard input say, {"open", "kind", "url", "token"} or {"close"}, and says what each
// page hears as [page, [event, data]], members by their names.

import { createInterface } from 'node:readline';

import Echo from 'laravel-echo';
import Pusher from 'pusher-js';
import { io } from 'socket.io-client';

const { PUSHER_KEY, ROOM } = process.env;
const pages = new Map();
const say = (page, event, data) => console.log(JSON.stringify([page, [event, data]]));

const open = {
  echo(page, url, token) {
    const echo = new Echo({
      broadcaster: 'socket.io',
      client: io,
      host: url,
      transports: ['websocket'],
      forceNew: true,
      auth: { headers: { Authorization: `Bearer ${token}` } },
    });
    echo.join(ROOM)
      .here((members) => say(page, 'here', members.map((member) => member.name).sort()))
      .joining((member) => say(page, 'joining', member.name))
      .leaving((member) => say(page, 'leaving', member.name))
      .listen('.said', (data) => say(page, 'said', data));
    return () => echo.disconnect();
  },

  pusher(page, url, token) {
    const { hostname, port } = new URL(url);
    const pusher = new Pusher(PUSHER_KEY, {
      cluster: 'any',
      wsHost: hostname,
      wsPort: port,
      forceTLS: false,
      enabledTransports: ['ws'],
      disableStats: true,
      channelAuthorization: {
        endpoint: new URL('/broadcasting/auth', url).href,
        headers: { Authorization: `Bearer ${token}` },
      },
    });
    const channel = pusher.subscribe(`presence-${ROOM}`);
    channel.bind('pusher:subscription_succeeded', (members) => {
      const names = [];
      members.each((member) => names.push(member.info.name));
      say(page, 'here', names.sort());
    });
    channel.bind('pusher:member_added', (member) => say(page, 'joining', member.info.name));
    channel.bind('pusher:member_removed', (member) => say(page, 'leaving', member.info.name));
    channel.bind('said', (data) => say(page, 'said', data));
    return () => pusher.disconnect();
  },
};

const lines = createInterface({ input: process.stdin });
lines.on('line', (line) => {
  const asked = JSON.parse(line);
  if (asked.close === undefined) {
    pages.set(asked.open, open[asked.kind](asked.open, asked.url, asked.token));
  } else {
    pages.get(asked.close)();
    pages.delete(asked.close);
  }
});
lines.on('close', () => {
  for (const close of pages.values()) close();
  process.exit(0);
});
