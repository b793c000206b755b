// A client whose user is asked for again and again; prints JSON, a line each.
import { io } from 'socket.io-client'

const { GATEWAY_URL, TRANSPORTS, TOKEN, CHANNEL } = process.env
const say = (event, ...args) => console.log(JSON.stringify([event, ...args]))
const socket = io(`${GATEWAY_URL}/ws/messages`, { transports: TRANSPORTS.split(','), auth: { token: TOKEN } })
socket.on('connected', ({ userId }) => {
  if (CHANNEL) socket.emit('join-channel', { channel: CHANNEL })
  say('connected')
  setInterval(() => socket.emit('check-user-status', { userId }, ({ data }) => say('status', data.status)), 500)
})
socket.on('disconnect', (reason) => say('disconnect', reason))
