// Who of the team is online, in React. With a build step `h('b', null, name)` would be `<b>{name}</b>`.

import { StrictMode, createElement as h, useState } from 'react';
import { createRoot } from 'react-dom/client';

import { PresenceProvider, usePresence, usePresenceClient, usePresenceState } from '/static/presence-react.js';
import { CHOICES, comeIn, people, words } from '/examples/team/team.js';

function Person({ id, name }) {
  const status = usePresence(id);
  return h('li', { 'data-status': status?.status ?? 'unknown' },
    h('span', { className: 'dot' }), h('b', null, name), h('small', null, words(status)));
}

function Mine() {
  const presence = usePresenceClient();
  const [problem, setProblem] = useState('');
  async function say(event) {
    event.preventDefault();
    const { status, text } = Object.fromEntries(new FormData(event.target));
    try {
      await presence.setStatus(status, { text });
      setProblem('');
    } catch (error) {
      setProblem(error.message);
    }
  }
  return h('form', { onSubmit: say },
    h('select', { name: 'status', 'aria-label': 'Your status' },
      Object.entries(CHOICES).map(([value, label]) => h('option', { key: value, value }, label))),
    h('input', { name: 'text', 'aria-label': 'What you are doing', maxLength: 128, placeholder: 'What are you doing?' }),
    h('button', null, 'Say so'),
    problem && h('p', { role: 'alert' }, problem));
}

function Connection() {
  const state = usePresenceState();
  return h('p', { role: 'status' }, state === 'connected' ? '' : `${state} …`);
}

function Team() {
  const [presence, setPresence] = useState(null);
  if (!presence) {
    return h('div', { className: 'who' }, h('h1', null, 'Who are you?'),
      people.map(({ id, name }) => h('button', { key: id, onClick: () => setPresence(comeIn(id)) }, name)));
  }
  return h(PresenceProvider, { client: presence },
    h('h1', null, 'Team'),
    h('ul', null, people.map(({ id, name }) => h(Person, { key: id, id, name }))),
    h(Mine),
    h(Connection));
}

createRoot(document.getElementById('app')).render(h(StrictMode, null, h(Team)));
