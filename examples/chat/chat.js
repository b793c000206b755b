// The chat's page: what a front end does with the gateway's channels, without a framework.

const ROOMS = ['general', 'music', 'games'];
const TYPING_EVERY = 2000; // milliseconds between two notices that this person is typing

const $ = (id) => document.getElementById(id);
const names = new Map(); // of users, by id
const statuses = new Map();
const unread = new Map(); // messages of a person that have not been looked at
let me;
let socket;
let place; // where this window is: {room} or {person}
let members = new Map(); // of the room that is open
const typing = new Map(); // names of those who type here, by user id

$('login').addEventListener('submit', async (event) => {
  event.preventDefault();
  const name = new FormData(event.target).get('name');
  const response = await fetch('/login', { method: 'POST', body: JSON.stringify({ name }) });
  if (!response.ok) {
    $('refused').textContent = await response.text();
    return;
  }
  const { userId, token } = await response.json();
  me = userId;
  names.set(me, name);
  $('login').hidden = true;
  $('chat').hidden = false;
  connect(token);
});

/** Asks the gateway for something, and returns what it answers. */
async function ask(event, payload) {
  const answer = await socket.timeout(5000).emitWithAck(event, payload);
  if (answer.error) throw new Error(answer.error.message);
  return answer.data;
}

function connect(token) {
  socket = io('/ws/messages', { auth: { token } });
  socket.on('connected', async () => {
    state('');
    const { users } = await ask('get-online-users');
    statuses.clear();
    for (const user of users) seen(user);
    showPeople();
    if (!socket.recovered) await open(place ?? { room: ROOMS[0] });
  });
  socket.on('disconnect', () => state('Connection lost; trying again …'));
  socket.on('connect_error', (error) => state(error.message));
  for (const event of ['user-online', 'user-status-changed', 'user-offline']) {
    socket.on(event, (user) => { seen(user); showPeople(); });
  }
  socket.on('member-added', (member) => { if (isHere(member.channel)) { join(member); showMembers(); } });
  socket.on('member-removed', (member) => { if (isHere(member.channel)) { members.delete(member.userId); showMembers(); } });
  socket.on('channel-members', ({ channel, members: all }) => { if (isHere(channel)) { members = new Map(); all.forEach(join); showMembers(); } });
  socket.on('new-message', receive);
  socket.on('message-read', ({ message_id: id }) => mark(id));
  socket.on('user-typing', ({ user_id: user, user_name: name, is_typing: is }) => {
    if (is) typing.set(user, name ?? user); else typing.delete(user);
    showTyping();
  });
}

const isHere = (channel) => place?.room !== undefined && channel === `presence-room-${place.room}`;

function seen(user) {
  if (user.name) names.set(user.userId, user.name);
  if (user.status === 'offline') statuses.delete(user.userId); else statuses.set(user.userId, user.status);
}

function join(member) {
  if (member.info.name) names.set(member.userId, member.info.name);
  members.set(member.userId, member);
}

/** Goes to a room or to a person, and shows what was said there. */
async function open(next) {
  if (place?.room && place.room !== next.room) {
    await ask('leave-channel', { channel: `presence-room-${place.room}` });
    await ask('leave-channel', { channel: `room-${place.room}` });
  }
  if (place?.person && place.person !== next.person) {
    await ask('leave-conversation', { conversationId: conversation(place.person) });
  }
  place = next;
  members = new Map();
  typing.clear();
  $('messages').replaceChildren();
  let history;
  if (place.room) {
    const here = await ask('join-channel', { channel: `presence-room-${place.room}` });
    here.members.forEach(join);
    ({ history } = await ask('join-channel', { channel: `room-${place.room}`, since: '0' }));
  } else {
    ({ history } = await ask('join-conversation', { conversationId: conversation(place.person), since: '0' }));
    unread.delete(place.person);
  }
  const read = new Set(history.filter(({ event }) => event === 'message-read').map(({ data }) => data.message_id));
  for (const { event, data } of history) if (event === 'new-message') show(data);
  read.forEach(mark);
  if (place.person) await ask('mark-read', { userId: place.person });
  showRooms();
  showPeople();
  showMembers();
  showTyping();
}

const conversation = (person) => [me, person].sort().join('-');

async function receive(message) {
  if (message.room_id !== undefined) {
    if (message.room_id === place?.room) show(message);
  } else {
    const other = message.sender_id === me ? message.recipient_id : message.sender_id;
    if (other === place?.person) {
      show(message);
      if (message.sender_id !== me) await ask('mark-read', { messageId: message.id });
    } else {
      unread.set(other, (unread.get(other) ?? 0) + 1);
      showPeople();
    }
  }
}

/** Shows one message, once, whether it came as an event, in an answer or from the history. */
function show(message) {
  if (document.querySelector(`#messages [data-id="${CSS.escape(message.id)}"]`)) return;
  const line = document.createElement('li');
  line.dataset.id = message.id;
  line.className = message.mine || message.sender_id === me ? 'mine' : '';
  const by = document.createElement('small');
  by.textContent = message.sender_name ?? names.get(message.sender_id) ?? message.sender_id;
  line.append(by, message.message ?? message.content);
  if (message.sender_id === me) {
    const tick = document.createElement('small');
    tick.className = 'tick';
    tick.textContent = message.is_read ? 'read' : 'sent';
    line.append(tick);
  }
  $('messages').append(line);
  line.scrollIntoView({ block: 'end' });
}

function mark(id) {
  const tick = document.querySelector(`#messages [data-id="${CSS.escape(id)}"] .tick`);
  if (tick) tick.textContent = 'read';
}

const destination = () => (place.room ? { channel: `room-${place.room}` } : { recipientId: place.person });

$('compose').addEventListener('submit', async (event) => {
  event.preventDefault();
  const input = event.target.elements.text;
  const content = input.value.trim();
  if (!content) return;
  input.value = '';
  try {
    const { message } = await ask('send-message', { ...destination(), content, clientId: crypto.randomUUID() });
    show({ ...message, mine: true });
  } catch (error) {
    input.value = content; // nothing is lost: it can be sent again
    state(error.message);
  }
});

let toldAt = 0;
$('compose').elements.text.addEventListener('input', () => {
  if (Date.now() - toldAt > TYPING_EVERY) {
    toldAt = Date.now();
    ask('typing', { ...destination(), isTyping: true }).catch(() => {});
  }
});

function state(text) {
  $('state').textContent = text;
}

function entry(label, current, go) {
  const item = document.createElement('li');
  const button = document.createElement('button');
  button.textContent = label;
  button.setAttribute('aria-current', String(current));
  button.addEventListener('click', () => go().catch((error) => state(error.message)));
  item.append(button);
  return item;
}

function showRooms() {
  $('rooms').replaceChildren(...ROOMS.map((room) => entry(`# ${room}`, place.room === room, () => open({ room }))));
}

function showPeople() {
  const others = [...statuses.keys()].filter((user) => user !== me).sort();
  $('people').replaceChildren(...others.map((person) => {
    const item = entry(names.get(person) ?? person, place?.person === person, () => open({ person }));
    item.dataset.userId = person;
    item.dataset.status = statuses.get(person);
    const waiting = unread.get(person);
    if (waiting) Object.assign(item.firstChild, { className: 'unread' }).dataset.unread = waiting;
    return item;
  }));
}

function showMembers() {
  $('place').textContent = place.room ? `# ${place.room}` : names.get(place.person) ?? place.person;
  $('members').textContent = place.room ? `in this room: ${[...members.keys()].map((user) => names.get(user) ?? user).join(', ')}` : '';
}

function showTyping() {
  $('typing').textContent = typing.size ? `${[...typing.values()].join(', ')} ${typing.size > 1 ? 'are' : 'is'} typing …` : '';
}
