/*
 * Presence gateway: the interactive test page.
 * A classic script, because browsers refuse ES modules from file://.
 * User names and payloads are hostile input: they reach the page as text nodes only.
 */
(function () {
  'use strict';

  const NAMESPACE = '/ws/messages';
  const DEFAULT_SERVER = 'http://127.0.0.1:3000';
  const CDN = {
    src: 'https://cdn.socket.io/4.8.4/socket.io.min.js',
    integrity: 'sha384-fBrXvbDtHoeKWJ/hcA6M+YGueiDW+h45I7V6F2kD1S8bOkrF9rZYPLVkCR6BLR/1',
  };
  const REQUEST_TIMEOUT = 5000;
  const HEARTBEAT_INTERVAL = 25000;
  const LOG_LIMIT = 500;
  const SHOWN_PEOPLE = 300;
  const MAX_PAGES = 20;
  const PAINT_DELAY = 30; // a timer, not an animation frame: the page must keep up in a background window

  const STATUS_WORDS = {
    online: 'online', away: 'away', busy: 'busy', dnd: 'do not disturb', invisible: 'invisible', offline: 'offline',
  };
  const REFUSALS = {
    TOKEN_MISSING: 'Get a development token, or paste one.',
    TOKEN_INVALID: 'It was made for another key, issuer or audience. Get a new one.',
    TOKEN_EXPIRED: 'Get a new one.',
    TOO_MANY_CONNECTIONS: 'Close another window of this user.',
  };

  const byId = (id) => document.getElementById(id);

  let socket = null;
  let session = null;       // {server, token, devUser}: what the present connection was opened with
  let me = null;            // our own userId
  let devTokenUser = null;  // whose development token is in the token field; null when it was pasted
  let renewed = false;      // one automatic renewal per refusal, so that it cannot loop
  let drainDelay = null;    // seconds to wait before coming back to a draining server
  let attempt = 0;          // a newer connection attempt, or Disconnect, makes the older ones give up
  let retryTimer = 0;
  let lastHeartbeat = 0;
  let staleSince = null;    // when the list stopped being live
  const people = new Map(); // userId -> person
  const rows = new Map();   // userId -> <li> on the page

  /* ---------- Small helpers ---------- */

  function el(tag, props, ...children) {
    const { data, ...rest } = props || {};
    const node = Object.assign(document.createElement(tag), rest);
    Object.assign(node.dataset, data);
    node.append(...children);
    return node;
  }

  const bdi = (text) => el('bdi', {}, text); // keeps right-to-left tricks in a name inside that name
  const pad = (n, width = 2) => String(n).padStart(width, '0');
  const milliseconds = (ms) => `${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms`;
  const statusWord = (status) => STATUS_WORDS[status] || String(status);
  const toJson = (value, indent) =>
    JSON.stringify(value, (key, v) => (key === 'token' ? '(hidden)' : v), indent) ?? '';

  const clock = (date) => [date.getHours(), date.getMinutes(), date.getSeconds()].map((n) => pad(n)).join(':');

  function ago(iso) {
    const seconds = Math.max(0, Math.round((Date.now() - Date.parse(iso)) / 1000));
    if (!(seconds >= 1)) return 'now';
    const [size, unit] = [[86400, 'd'], [3600, 'h'], [60, 'min'], [1, 's']].find(([n]) => seconds >= n);
    return `${Math.floor(seconds / size)} ${unit} ago`;
  }

  const absolute = (iso) => (iso ? `${new Date(iso).toLocaleString()} (${iso})` : '');

  function later(paint) {
    let timer = 0;
    return () => { timer ||= setTimeout(() => { timer = 0; paint(); }, PAINT_DELAY); };
  }

  function notice(tone, ...content) {
    const box = byId('notice');
    box.hidden = content.length === 0;
    box.dataset.tone = tone;
    box.replaceChildren(...content);
  }

  /* ---------- Theme ---------- */

  function setTheme(theme) {
    const root = document.documentElement;
    if (theme === 'auto') delete root.dataset.theme;
    else root.dataset.theme = theme;
  }

  function initTheme() {
    const select = byId('theme');
    try { select.value = localStorage.getItem('presence-theme') || 'auto'; } catch { /* storage is switched off */ }
    setTheme(select.value ||= 'auto');
    select.addEventListener('change', () => {
      setTheme(select.value);
      try { localStorage.setItem('presence-theme', select.value); } catch { /* it lasts as long as the page */ }
    });
  }

  /* ---------- Event log ---------- */

  const log = { entries: [], painted: 0, seq: 0, pausedAt: null };
  const paintLogSoon = later(paintLog);

  /** entry: {direction: 'in'|'out', event, payload, re?: request answered, timing?, timingTitle?, failed?} */
  function record(entry) {
    log.entries.push({ ...entry, seq: ++log.seq, at: new Date() });
    if (log.entries.length > LOG_LIMIT) log.entries.shift();
    paintLogSoon();
  }

  function visibleEntries(after = 0) {
    const until = log.pausedAt ?? Infinity;
    const [, minus, text] = /^(-?)(.*)$/.exec(byId('log-filter').value.trim().toLowerCase());
    const wanted = ({ event, re = '', payload }) =>
      !text || `${event} ${re} ${toJson(payload)}`.toLowerCase().includes(text) !== Boolean(minus);
    return log.entries.filter((entry) => entry.seq > after && entry.seq <= until && wanted(entry)).reverse();
  }

  function brief(payload) {
    const body = payload?.data ?? payload?.error ?? payload ?? '';
    if (typeof body !== 'object') return String(body).slice(0, 160);
    const word = (value) => {
      if (Array.isArray(value)) return `[${value.length}]`;
      return typeof value === 'object' ? '{…}' : value;
    };
    return Object.entries(body)
      .filter(([key, value]) => key !== 'timestamp' && value !== null)
      .map(([key, value]) => `${key}: ${key === 'token' ? '(hidden)' : word(value)}`)
      .join(', ').slice(0, 160);
  }

  function logRow(entry) {
    const pre = el('pre');
    const iso = entry.at.toISOString();
    const time = `${clock(entry.at)}.${pad(entry.at.getMilliseconds(), 3)}`;
    const details = el('details', {},
      el('summary', {},
        el('time', { dateTime: iso, title: iso }, time),
        el('span', { className: 'direction' }, entry.direction === 'in' ? '↓ in' : '↑ out'),
        el('span', { className: 'name' }, bdi(entry.event)),
        el('span', { className: 'brief' }, entry.re ? `← ${entry.re} · ` : '', bdi(brief(entry.payload))),
        el('span', { className: 'timing', title: entry.timingTitle || '' }, entry.timing || '')),
      pre);
    details.addEventListener('toggle', () => { // most rows are never opened
      if (details.open && !pre.textContent) pre.textContent = toJson(entry.payload, 2) || '(no payload)';
    });
    const data = { event: entry.event, direction: entry.direction, failed: String(Boolean(entry.failed)) };
    return el('li', { data }, details);
  }

  function paintLog() {
    const list = byId('event-log');
    const fresh = visibleEntries(log.painted);
    log.painted = log.pausedAt ?? log.seq;
    list.prepend(...fresh.map(logRow));
    while (list.children.length > LOG_LIMIT) list.lastElementChild.remove();
    byId('log-count').textContent = list.children.length;
    const held = log.pausedAt === null ? 0 : log.entries.filter((entry) => entry.seq > log.pausedAt).length;
    byId('log-pause').textContent = log.pausedAt === null ? 'Pause' : `Resume${held ? ` (${held} new)` : ''}`;
    byId('log-empty').textContent = log.entries.length
      ? 'No row matches the filter.' : 'Everything sent and received appears here, newest first.';
  }

  function redrawLog() {
    log.painted = 0;
    byId('event-log').replaceChildren();
    paintLog();
  }

  function togglePause() {
    log.pausedAt = log.pausedAt === null ? log.seq : null;
    byId('log-pause').setAttribute('aria-pressed', String(log.pausedAt !== null));
    paintLog();
  }

  async function copyLog() {
    const exported = visibleEntries().map(({ at, direction, event, re, timing, payload }) =>
      ({ time: at.toISOString(), direction, event, re, timing, payload }));
    const button = byId('log-copy');
    const copied = await navigator.clipboard?.writeText(toJson(exported, 2)).then(() => true, () => false);
    // Browsers offer the clipboard to https, to localhost and to files only.
    button.textContent = copied ? 'Copied' : copied === false ? 'Not allowed' : 'Needs https';
    setTimeout(() => { button.textContent = 'Copy as JSON'; }, 1500);
  }

  /* ---------- People ---------- */

  const collator = new Intl.Collator();
  const paintPeopleSoon = later(paintPeople);

  /** Merges what the server said. An event must be newer than what is known; an answer may repeat it. */
  function learn(status, { isEvent = false, addUnknown = true } = {}) {
    const known = people.get(status.userId);
    if (!known && !addUnknown) return;
    if (known && (isEvent ? status.version <= known.version : status.version < known.version)) return;
    const person = known || { userId: status.userId, status: 'offline' };
    person.arrived ||= isEvent && person.status === 'offline' && status.status !== 'offline';
    for (const key of ['status', 'statusText', 'lastActive', 'version', 'name']) {
      if (status[key] !== undefined) person[key] = status[key];
    }
    person.touched = performance.now();
    people.set(person.userId, person);
    paintPeopleSoon();
  }

  async function syncPeople() {
    const started = performance.now();
    const seen = new Set();
    let cursor = null;
    let pages = 0;
    let count = 0;
    do {
      const { data } = await request('get-online-users', cursor ? { cursor } : undefined);
      for (const user of data.users) {
        seen.add(user.userId);
        learn(user);
      }
      ({ count, nextCursor: cursor } = data);
      pages += 1;
    } while (cursor && pages < MAX_PAGES);
    for (const person of people.values()) {
      // Whoever a complete list does not name is offline, unless an event said otherwise meanwhile.
      const absent = !cursor && !seen.has(person.userId) && person.touched < started;
      if (absent && person.userId !== me) person.status = 'offline';
    }
    paintPeopleSoon();
    return { count, pages, rtt: performance.now() - started, complete: !cursor };
  }

  const nameOf = (person) => String(person.name || '').trim() || person.userId;

  function byPresence(a, b) {
    const offline = (person) => person.status === 'offline';
    if (offline(a) !== offline(b)) return offline(a) ? 1 : -1;
    if (offline(a) && a.lastActive !== b.lastActive) return a.lastActive < b.lastActive ? 1 : -1;
    return collator.compare(nameOf(a), nameOf(b)) || collator.compare(a.userId, b.userId);
  }

  function initials(name) {
    const words = name.trim().split(/[\s._-]+/u).filter(Boolean);
    const first = (word) => Array.from(word || '')[0] || '';
    return (first(words[0]) + (words.length > 1 ? first(words.at(-1)) : '')).toUpperCase() || '?';
  }

  const hue = (text) => Array.from(text).reduce((sum, char) => sum + char.codePointAt(0), 0) % 8;

  function personRow(person) {
    const row = rows.get(person.userId) || el('li', { data: { userId: person.userId, hue: hue(person.userId) } });
    rows.set(person.userId, row);
    const name = nameOf(person);
    const picture = [name, person.status, person.statusText, person.userId === me].join('\n');
    if (row.picture === picture) return row; // unchanged: keep the nodes, and with them focus and animation
    row.picture = picture;
    row.dataset.status = person.status;
    const detail = el('span', { className: 'person-detail' });
    if (name !== person.userId) detail.append(el('bdi', { className: 'id' }, person.userId));
    if (person.statusText) detail.append(bdi(person.statusText));
    const button = row.firstChild || row.appendChild(el('button', { type: 'button', className: 'person' }));
    button.title = `Check ${person.userId}`;
    button.replaceChildren(
      el('span', { className: 'avatar', ariaHidden: 'true' },
        el('span', { className: 'avatar-text' }, initials(name)), el('span', { className: 'dot' })),
      el('span', { className: 'person-main' },
        el('span', { className: 'person-name' }, bdi(name),
          ...(person.userId === me ? [el('span', { className: 'you' }, 'you')] : [])),
        detail),
      el('span', { className: 'person-side' },
        el('span', { className: 'status-word' }, statusWord(person.status)),
        el('span', { className: 'seen' })));
    return row;
  }

  function paintPeople() {
    const list = byId('people');
    const sorted = [...people.values()].sort(byPresence);
    const online = sorted.filter((person) => person.status !== 'offline').length;
    const focused = list.contains(document.activeElement) ? document.activeElement : null;
    const shown = sorted.slice(0, SHOWN_PEOPLE);
    const keep = new Set(shown.map((person) => person.userId));
    for (const [userId, row] of rows) {
      if (!keep.has(userId)) { row.remove(); rows.delete(userId); }
    }
    shown.forEach((person, index) => {
      const row = personRow(person);
      if (list.children[index] !== row) list.insertBefore(row, list.children[index] || null);
      if (person.arrived) row.classList.add('arrived');
      person.arrived = false;
    });
    if (focused?.isConnected) focused.focus({ preventScroll: true }); // moving a row drops its focus
    byId('online-count').textContent = online;
    list.dataset.stale = String(Boolean(staleSince));
    byId('people-note').textContent = peopleNote(sorted.length);
    tick();
  }

  function peopleNote(total) {
    if (staleSince) return `Not live: this is how it was at ${clock(staleSince)}.`;
    if (total > SHOWN_PEOPLE) return `Live. The first ${SHOWN_PEOPLE} of ${total} are shown.`;
    if (total) return 'Live. Click someone to check them.';
    return socket?.connected ? 'Nobody is online yet.' : 'Go online to see who is here.';
  }

  function tick() {
    for (const [userId, row] of rows) {
      const { status, lastActive } = people.get(userId);
      const seen = row.querySelector('.seen');
      seen.textContent = lastActive ? `${status === 'offline' ? 'last seen' : 'active'} ${ago(lastActive)}` : '';
      seen.title = absolute(lastActive);
    }
  }

  function fillCheck(event) {
    const row = event.target.closest('[data-user-id]');
    if (!row) return;
    byId('check-user-id').value = row.dataset.userId;
    const button = byId('check-user');
    (button.disabled ? byId('check-user-id') : button).focus(); // one more Enter checks
  }

  /* ---------- Requests ---------- */

  async function request(event, payload) {
    if (!socket?.connected) throw new Error('Not connected. Go online first.');
    record({ direction: 'out', event, payload });
    const started = performance.now();
    const asked = socket.timeout(REQUEST_TIMEOUT);
    let answer;
    try {
      answer = await (payload === undefined ? asked.emitWithAck(event) : asked.emitWithAck(event, payload));
    } catch (error) {
      record({ direction: 'in', event: 'no-answer', re: event, payload: { message: error.message }, failed: true });
      throw new Error(socket?.connected ? `No answer within ${REQUEST_TIMEOUT / 1000} s.` : 'The connection was lost.');
    }
    const rtt = performance.now() - started;
    const failed = answer?.event === 'error';
    record({
      direction: 'in', event: String(answer?.event), re: event, payload: answer, failed,
      timing: milliseconds(rtt), timingTitle: 'Round trip: from sending the request to its answer',
    });
    if (failed) throw Object.assign(new Error(answer.error.message), answer.error);
    if (people.has(me)) people.get(me).lastActive = new Date().toISOString(); // a request counts as activity
    return { data: answer.data, rtt };
  }

  function show(id, tone, ...content) {
    byId(id).dataset.tone = tone;
    byId(id).replaceChildren(...content);
  }

  /** Runs one action and shows its error, if any, where its result would be. */
  function showing(resultId, action) {
    return async () => {
      try {
        await action();
      } catch ({ code, message, retryAfter }) {
        const retry = retryAfter ? ` · retry in ${retryAfter} s` : '';
        show(resultId, 'error', `${code ? `${code}: ` : ''}${message}${retry}`);
      }
    };
  }

  const timing = (rtt) => el('span', { className: 'timing', title: 'Round trip' }, `in ${milliseconds(rtt)}`);

  function statusLine(status, ...extra) {
    const seen = `${status.online ? 'active' : 'last seen'} ${ago(status.lastActive)}`;
    return el('span', { className: 'status-line', data: { status: status.status } },
      el('span', { className: 'dot', ariaHidden: 'true' }), bdi(status.userId), ' ',
      el('span', { className: 'status-word' }, statusWord(status.status)), ' ',
      ...(status.statusText ? [bdi(`“${status.statusText}”`), ' '] : []),
      el('span', { className: 'timing', title: absolute(status.lastActive) }, status.lastActive ? seen : 'never seen'),
      ' ', ...extra);
  }

  const checkUser = showing('check-user-result', async () => {
    const { data, rtt } = await request('check-user-status', { userId: byId('check-user-id').value.trim() });
    learn(data, { addUnknown: data.online });
    show('check-user-result', 'ok', statusLine(data, timing(rtt)));
  });

  const checkUsers = showing('check-users-result', async () => {
    const userIds = byId('check-users-ids').value.split(/[\s,]+/).filter(Boolean);
    const { data, rtt } = await request('check-users-status', { userIds });
    for (const status of data.statuses) learn(status, { addUnknown: status.online });
    const online = data.statuses.filter((status) => status.online).length;
    show('check-users-result', 'ok', `${online} of ${data.statuses.length} online `, timing(rtt),
      el('ul', {}, ...data.statuses.map((status) =>
        el('li', { data: { userId: status.userId, status: status.status } }, statusLine(status)))));
  });

  const getOnline = showing('get-online-result', async () => {
    const { count, pages, rtt, complete } = await syncPeople();
    const paged = pages > 1 ? ` in ${pages} pages${complete ? '' : ', the rest left out'}` : '';
    show('get-online-result', 'ok', `${count} online${paged} `, timing(rtt));
  });

  const heartbeat = showing('heartbeat-result', async () => {
    lastHeartbeat = Date.now();
    const { rtt } = await request('heartbeat');
    show('heartbeat-result', 'ok', `answered at ${clock(new Date())} `, timing(rtt));
  });

  const setStatus = showing('set-status-result', async () => {
    const { data, rtt } = await request('set-status', { status: byId('status-choice').value });
    learn(data);
    show('set-status-result', 'ok', statusLine(data, timing(rtt)));
  });

  /** A hidden page stops its heartbeats, so that its user turns away, as in a real application. */
  async function beatWhenDue() {
    const due = Date.now() - lastHeartbeat >= HEARTBEAT_INTERVAL;
    const wanted = byId('auto-heartbeat').checked && document.visibilityState === 'visible';
    if (!due || !wanted || !socket?.connected) return;
    await heartbeat();
    // Others' activity is not pushed: read it again now and then, unless the list is long.
    if (people.size <= 1000) await syncPeople().catch(() => {});
  }

  /* ---------- Tokens ---------- */

  function serverUrl() {
    let url = null;
    try { url = new URL(byId('server-url').value.trim()); } catch { /* told below */ }
    if (!url || !/^https?:$/.test(url.protocol)) {
      byId('server-url').focus();
      throw new Error(`The server URL must look like ${DEFAULT_SERVER}.`);
    }
    byId('server-url').value = url.origin;
    return url.origin;
  }

  function setDevToken({ token, userId, expiresAt }) {
    byId('token').value = token;
    devTokenUser = userId;
    byId('token-hint').replaceChildren('Development token of ', bdi(userId),
      `, until ${new Date(expiresAt).toLocaleTimeString()}.`);
  }

  function tokenEdited() {
    devTokenUser = null;
    byId('token-hint').textContent = byId('token').value ? 'A token of your own.' : 'No token yet.';
  }

  async function fetchDevToken(server, user) {
    const { origin } = window; // "null" for a file
    let response;
    try {
      response = await fetch(`${server}/dev/token?user=${encodeURIComponent(user)}`,
        { cache: 'no-store', signal: AbortSignal.timeout(REQUEST_TIMEOUT) });
    } catch {
      const cors = server === origin ? '' : `, and does CORS_ALLOWED_ORIGINS allow the origin “${origin}”`;
      throw new Error(`Cannot reach ${server}. Is the server running there${cors}?`);
    }
    const answer = response.ok ? await response.json().catch(() => null) : null;
    if (typeof answer?.token !== 'string') {
      throw new Error(`No development token from ${server} (HTTP ${response.status}): it was not started with --dev.`);
    }
    record({ direction: 'in', event: 'dev-token', payload: answer });
    return answer;
  }

  /** Says how to come by a token without development mode. */
  function explainToken(error) {
    notice('error', `${error.message} You can paste a token instead; make one on the server with `,
      el('code', {}, 'python -m gateway token alice'), '.');
  }

  async function getToken() {
    const user = byId('user-name').value.trim();
    notice('info');
    if (!user) {
      notice('warn', 'Type a user name first.');
      byId('user-name').focus();
      return false;
    }
    try {
      setDevToken(await fetchDevToken(serverUrl(), user));
      return true;
    } catch (error) {
      explainToken(error);
      return false;
    }
  }

  function toggleToken() {
    const show = byId('token').type === 'password';
    byId('token').type = show ? 'text' : 'password';
    byId('toggle-token').textContent = show ? 'Hide' : 'Show';
    byId('toggle-token').setAttribute('aria-label', `${show ? 'Hide' : 'Show'} the token`);
  }

  /* ---------- Connection ---------- */

  function loadScript(src, props) {
    return new Promise((resolve, reject) => {
      const script = el('script', { ...props, src });
      const failed = () => { script.remove(); reject(new Error(src)); };
      script.onload = () => (window.io ? resolve() : failed());
      script.onerror = failed;
      document.head.append(script);
      setTimeout(failed, 8000);
    });
  }

  /** The server's own client first: it works without the Internet. */
  async function loadClient(server) {
    if (window.io) return;
    try {
      await loadScript(`${server}/socket.io/socket.io.min.js`);
    } catch {
      await loadScript(CDN.src, { integrity: CDN.integrity, crossOrigin: 'anonymous' }).catch(() => {
        throw new Error(`The Socket.IO client loads neither from ${server} nor from cdn.socket.io. ` +
          'Start the server, or correct the server URL, then press Connect again.');
      });
    }
  }

  function setState(state, ...detail) {
    byId('connection-state').dataset.state = state;
    byId('connection-state').replaceChildren(el('span', {}, state, ...detail));
    byId('connect').disabled = state !== 'disconnected';
    byId('disconnect').disabled = state === 'disconnected';
    for (const button of document.querySelectorAll('[data-needs-connection]')) button.disabled = state !== 'connected';
    document.title = `${state === 'connected' && me ? `${me}, online · ` : ''}Presence test page`;
  }

  function showConnected() {
    const transport = socket.io.engine?.transport.name;
    setState('connected', ...(me ? [' as ', bdi(me)] : []), ` · ${transport}`);
  }

  async function connect() {
    close();
    const mine = ++attempt;
    notice('info');
    try {
      const server = serverUrl();
      setState('connecting', '…');
      await loadClient(server);
      if (mine === attempt) openSocket(server);
    } catch (error) {
      if (mine !== attempt) return;
      setState('disconnected');
      notice('error', error.message);
    }
  }

  function openSocket(server) {
    const choice = byId('transport').value;
    session = { server, token: byId('token').value.trim(), devUser: devTokenUser };
    me = session.devUser;
    renewed = false;
    staleSince = null;
    people.clear();
    paintPeople();
    socket = window.io(server + NAMESPACE, {
      forceNew: true,
      auth: (send) => send({ token: session.token }), // asked at each reconnection
      ...(choice === 'auto' ? {} : { transports: [choice] }),
    });
    socket.on('connect', onConnect);
    socket.on('connect_error', onConnectError);
    socket.on('disconnect', onDisconnect);
    socket.onAny(onEvent);
    socket.io.on('reconnect_attempt', (n) => setState('reconnecting', ` · attempt ${n}`));
  }

  function close() {
    attempt += 1;
    clearTimeout(retryTimer);
    drainDelay = null;
    if (!socket) return;
    const old = socket;
    socket = null;
    old.off();
    old.io.off();
    old.disconnect();
    goStale();
  }

  function disconnect() {
    close();
    record({ direction: 'out', event: 'disconnect', payload: { reason: 'by you' } });
    setState('disconnected', ' · by you');
    notice('info');
  }

  function goStale() {
    if (people.size) staleSince ??= new Date();
    paintPeopleSoon();
  }

  function onConnect() {
    renewed = false;
    drainDelay = null;
    staleSince = null;
    lastHeartbeat = Date.now();
    notice('info');
    const { engine } = socket.io;
    record({ direction: 'in', event: 'connect', payload: { id: socket.id, transport: engine.transport.name } });
    engine.on('upgrade', () => { if (socket?.connected) showConnected(); });
    showConnected();
    for (const person of people.values()) person.version = -1; // a restarted server may count from 1 again
    getOnline();
  }

  async function onConnectError(error) {
    const { code } = error.data || {};
    const payload = { message: error.message, ...error.data };
    record({ direction: 'in', event: 'connect_error', payload, failed: true });
    if (socket.active) { // the network's fault: socket.io-client tries again by itself
      if (byId('connection-state').dataset.state === 'connecting') setState('reconnecting', '…');
      notice('warn', `Cannot reach the server (${error.message}). Trying again.`);
      return;
    }
    if (code === 'SERVER_DRAINING') return reconnectIn(error.data.retryAfter ?? 2);
    // A development server makes a new secret with each start, so an old token may just need replacing.
    const renewable = code === 'TOKEN_EXPIRED' || code === 'TOKEN_INVALID';
    if (renewable && session.devUser && !renewed) return reconnectRenewed();
    setState('disconnected', ` · ${code || 'refused'}`);
    notice('error', `Refused: ${code ? `${code}, ` : ''}${error.message}. ${REFUSALS[code] || ''}`);
    goStale();
  }

  /** A new development token for the present connection; null when there is none to be had, or a newer attempt. */
  async function renewToken() {
    const mine = attempt;
    try {
      const answer = await fetchDevToken(session.server, session.devUser);
      if (mine !== attempt) return null;
      if (byId('token').value === session.token) setDevToken(answer);
      session.token = answer.token;
      return answer.token;
    } catch (error) {
      if (mine === attempt) explainToken(error);
      return null;
    }
  }

  async function reconnectRenewed() {
    const mine = attempt;
    renewed = true;
    setState('reconnecting', ' · new token');
    if (await renewToken()) socket.connect();
    else if (mine === attempt) setState('disconnected', ' · no token');
  }

  function reconnectIn(seconds) {
    setState('reconnecting', ` · in ${seconds} s`);
    clearTimeout(retryTimer);
    retryTimer = setTimeout(() => socket?.connect(), seconds * 1000);
  }

  function onDisconnect(reason) {
    record({ direction: 'in', event: 'disconnect', payload: { reason }, failed: true });
    goStale();
    if (socket.active) setState('reconnecting', ` · ${reason}`);
    else if (drainDelay !== null) reconnectIn(drainDelay);
    else {
      setState('disconnected', ` · ${reason}`);
      notice('warn', 'The server ended this connection: the user was disconnected by a backend, or the token ran out.');
    }
  }

  async function onTokenExpired() {
    if (!session.devUser) {
      notice('warn', 'The token has expired: the server disconnects in 10 s. Paste a new one and connect again.');
      return;
    }
    const token = await renewToken();
    if (!token) return;
    await request('refresh-token', { token }).catch((error) => notice('error', `refresh-token: ${error.message}`));
  }

  const HANDLERS = {
    connected: (data) => { me = data.userId; showConnected(); paintPeopleSoon(); },
    'user-online': (data) => learn({ lastActive: data.timestamp, ...data }, { isEvent: true }),
    'user-offline': (data) => learn({ ...data, statusText: null }, { isEvent: true }),
    'user-status-changed': (data) => learn(data, { isEvent: true }),
    'token-expired': onTokenExpired,
    'server-draining': (data) => {
      drainDelay = data.retryAfter ?? 2;
      notice('warn', 'The server is draining: it is about to stop. This page reconnects by itself.');
    },
    exception: (data) => notice('error', `${data.event}: ${data.code}, ${data.message}`),
  };

  function onEvent(event, data) {
    const delay = Date.now() - Date.parse(data?.timestamp);
    record({
      direction: 'in', event, payload: data,
      timing: Number.isNaN(delay) ? '' : `${delay < 0 ? '−' : '+'}${Math.abs(delay)} ms`,
      timingTitle: 'Arrived this long after the server’s timestamp. Where the two clocks differ it can be negative.',
    });
    if (Object.hasOwn(HANDLERS, event) && data && typeof data === 'object') HANDLERS[event](data);
  }

  async function goOnline() {
    if (await getToken()) await connect();
  }

  function linkSecondWindow() {
    const other = byId('user-name').value.trim() === 'bob' ? 'alice' : 'bob';
    byId('second-window').href = `?user=${other}&autoconnect=1`;
  }

  /* ---------- Keyboard shortcuts ---------- */

  const SHORTCUTS = {
    '/': () => byId('check-user-id').focus(),
    h: () => byId('heartbeat').click(),
    o: () => byId('get-online').click(),
    p: togglePause,
    '?': () => {
      byId('shortcut-help').open = true;
      byId('shortcut-help').firstElementChild.focus();
    },
  };

  function onKey(event) {
    const typing = event.target.closest?.('input, select, textarea');
    if (typing && typing.type !== 'checkbox') return;
    if (event.repeat || event.ctrlKey || event.metaKey || event.altKey || !byId('shortcuts').checked) return;
    if (!Object.hasOwn(SHORTCUTS, event.key)) return;
    event.preventDefault();
    SHORTCUTS[event.key]();
  }

  /* ---------- Start ---------- */

  const WIRING = [
    ['identity-form', 'submit', goOnline], ['connection-form', 'submit', connect], ['disconnect', 'click', disconnect],
    ['get-token', 'click', getToken], ['toggle-token', 'click', toggleToken], ['token', 'input', tokenEdited],
    ['user-name', 'input', linkSecondWindow], ['people', 'click', fillCheck],
    ['people', 'animationend', (event) => event.target.closest('li').classList.remove('arrived')],
    ['check-user-form', 'submit', checkUser], ['check-users-form', 'submit', checkUsers],
    ['status-form', 'submit', setStatus], ['get-online', 'click', getOnline],
    ['heartbeat', 'click', heartbeat], ['auto-heartbeat', 'change', beatWhenDue],
    ['log-filter', 'input', redrawLog], ['log-pause', 'click', togglePause],
    ['log-clear', 'click', () => { log.entries = []; redrawLog(); }], ['log-copy', 'click', copyLog],
  ];
  for (const [id, type, handler] of WIRING) {
    byId(id).addEventListener(type, (event) => {
      if (type === 'submit') event.preventDefault();
      handler(event);
    });
  }
  document.addEventListener('keydown', onKey);
  document.addEventListener('visibilitychange', beatWhenDue);
  setInterval(() => { tick(); beatWhenDue(); }, 1000);
  initTheme();

  const query = new URLSearchParams(location.search);
  byId('server-url').value = /^https?:$/.test(location.protocol) ? location.origin : DEFAULT_SERVER;
  byId('user-name').value = query.get('user') || byId('user-name').value;
  linkSecondWindow();
  if (query.get('autoconnect') === '1') goOnline();
})();
