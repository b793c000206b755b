// What the team's page is about, whatever it is made with.

import { PresenceClient } from '/static/presence-client.js';

export const people = await (await fetch('/people')).json();

/** The client of one of the people, on its way. */
export function comeIn(userId) {
  const presence = new PresenceClient({ getToken: async () => (await fetch(`/token?user=${userId}`)).text() });
  presence.connect();
  return presence;
}

export const CHOICES = { online: 'Online', busy: 'Busy', dnd: 'Do not disturb', away: 'Away', invisible: 'Invisible' };

const WORDS = { online: 'online', away: 'away', busy: 'busy', dnd: 'do not disturb', offline: 'offline' };
const time = new Intl.DateTimeFormat(undefined, { dateStyle: 'short', timeStyle: 'short' });

/** What the page says beside a name. */
export function words(status) {
  if (!status) return '…';
  if (status.statusText) return `${WORDS[status.status]}: ${status.statusText}`;
  if (status.online || !status.lastActive) return WORDS[status.status];
  return `last seen ${time.format(new Date(status.lastActive))}`;
}
