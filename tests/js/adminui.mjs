// What Socket.IO's Admin UI does first: joins /admin with a user and a password, and listens. Prints JSON, a line each.
import { io } from 'socket.io-client'

const { GATEWAY_URL, TRANSPORTS, ADMIN_USER, ADMIN_PASSWORD, ADMIN_SESSION, ADMIN_ORIGIN } = process.env
const say = (event, ...args) => console.log(JSON.stringify([event, ...args]))
const socket = io(`${GATEWAY_URL}/admin`, {
  transports: TRANSPORTS.split(','),
  forceNew: true,
  auth: ADMIN_PASSWORD !== undefined ? { username: ADMIN_USER, password: ADMIN_PASSWORD } : { sessionId: ADMIN_SESSION },
  extraHeaders: ADMIN_ORIGIN === undefined ? {} : { Origin: ADMIN_ORIGIN },
})
socket.on('connect', () => {
  say('connect')
  socket.emit('_disconnect', '/ws/messages', true) // all of them, which is not offered
  socket.timeout(5000).emit('emit', '/ws/messages', undefined, 'hello', (error, answer) => say('answer', answer))
})
socket.on('connect_error', (error) => say('connect_error', error.message))
socket.on('disconnect', (reason) => say('disconnect', reason))
socket.onAny((event, ...args) => say(event, ...args))
