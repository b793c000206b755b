// One client that lives through a restart of the gateway, and says each thing it hears as a line of JSON.
// Run by test_js_client.py, which stops and starts the gateway, and ends this by closing its standard input.

import { start, tenant } from './client.mjs';

const client = start({ auth: { token: tenant().token('alice') } });
const say = (...words) => console.log(JSON.stringify(words));
client.socket.onAny((event, payload) => say(event, payload));
client.socket.on('disconnect', (reason) => say('disconnect', { reason, active: client.socket.active }));
client.socket.io.engine.on('upgrade', () => say('upgrade', null));

process.stdin.resume().on('end', () => client.socket.disconnect());
