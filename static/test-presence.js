/*
 * Presence gateway: the interactive test page.
 * A classic script, because browsers refuse ES modules from file://.
 * User names and payloads are hostile input: they reach the page as text nodes only.
 */
(function () {
  'use strict';

  const NAMESPACE = '/ws/messages';
  const DEFAULT_SERVER = 'http://127.0.0.1:3000';
  const CLIENT_PATH = '/socket.io/socket.io.min.js';
  const CDN = 'https://cdn.socket.io/4.8.4/socket.io.min.js';
  const CDN_INTEGRITY = 'sha384-fBrXvbDtHoeKWJ/hcA6M+YGueiDW+h45I7V6F2kD1S8bOkrF9rZYPLVkCR6BLR/1';
  const REQUEST_TIMEOUT = 5000;
  const HEARTBEAT_INTERVAL = 25000;
  const LOG_LIMIT = 500;
  const SHOWN_PEOPLE = 300;
  const MAX_PAGES = 20;
  const PAINT_DELAY = 30; // a timer, not an animation frame: the page must keep up in a background window

  const REFUSALS = {
    TOKEN_MISSING: 'Get a development token, or paste one.',
    TOKEN_INVALID: 'Get a development token, or another.',
    TOKEN_EXPIRED: 'Get a new one.',
    TOO_MANY_CONNECTIONS: 'Close another window of this user.',
  };

  const page = {}; // every element with an id
  for (const node of document.querySelectorAll('[id]')) page[node.id] = node;

  const webPage = /^https?:$/.test(location.protocol); // otherwise a file

  /* ---------- Small helpers ---------- */

  /** Makes an element. Its children are nodes, or strings that become text. */
  function el(tag, props, ...children) {
    const { data, ...rest } = props;
    const node = Object.assign(document.createElement(tag), rest);
    Object.assign(node.dataset, data);
    node.append(...children);
    return node;
  }

  const bdi = (text) => el('bdi', {}, text); // keeps right-to-left tricks in a name inside that name
  const pad = (number, width = 2) => String(number).padStart(width, '0');
  const statusWord = (status) => (status === 'dnd' ? 'do not disturb' : String(status));
  const milliseconds = (ms) => `${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms`;
  const clock = (date) => [date.getHours(), date.getMinutes(), date.getSeconds()].map((n) => pad(n)).join(':');
  const absolute = (iso) => (iso ? `${new Date(iso).toLocaleString()} (${iso})` : '');

  function toJson(value, indent) {
    return JSON.stringify(value, (key, v) => (key === 'token' ? '(hidden)' : v), indent) ?? '';
  }

  function ago(iso) {
    const seconds = Math.round((Date.now() - Date.parse(iso)) / 1000);
    if (seconds < 1) return 'now';
    if (seconds < 60) return `${seconds} s ago`;
    if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
    if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ago`;
    return `${Math.floor(seconds / 86400)} d ago`;
  }

  /** Paints soon, once for all the calls until then. */
  function later(paint) {
    let timer = 0;
    return () => {
      if (timer) return;
      timer = setTimeout(() => { timer = 0; paint(); }, PAINT_DELAY);
    };
  }

  function notice(tone, ...content) {
    page.notice.hidden = content.length === 0;
    page.notice.dataset.tone = tone;
    page.notice.replaceChildren(...content);
  }

  const clearNotice = () => notice('info');

  /* ---------- Event log ---------- */

  const log = { entries: [], waiting: [], paused: false }; // both oldest first; each painted entry has its row
  const paintLogSoon = later(paintLog);

  /** entry: {direction: 'in'|'out', event, payload, re?: request answered, timing?, timingTitle?, failed?} */
  function record(entry) {
    log.waiting.push({ ...entry, at: new Date() });
    if (log.waiting.length > LOG_LIMIT) log.waiting.shift();
    paintLogSoon();
  }

  function paintLog() {
    if (!log.paused) {
      for (const entry of log.waiting) {
        entry.row = logRow(entry);
        entry.row.hidden = !matchesFilter(entry);
        page['event-log'].prepend(entry.row);
        log.entries.push(entry);
      }
      log.waiting = [];
      while (log.entries.length > LOG_LIMIT) log.entries.shift().row.remove();
    }
    const news = log.paused && log.waiting.length ? ` (${log.waiting.length} new)` : '';
    page['log-pause'].textContent = log.paused ? `Resume${news}` : 'Pause';
    page['log-count'].textContent = log.entries.length;
    page['log-empty'].hidden = log.entries.some((entry) => !entry.row.hidden);
    page['log-empty'].textContent = log.entries.length
      ? 'No row matches the filter.' : 'Everything sent and received appears here, newest first.';
  }

  function matchesFilter({ event, re = '', payload }) {
    const filter = page['log-filter'].value.trim().toLowerCase();
    const excludes = filter.startsWith('-');
    const text = excludes ? filter.slice(1) : filter;
    return !text || `${event} ${re} ${toJson(payload)}`.toLowerCase().includes(text) !== excludes;
  }

  function filterLog() {
    for (const entry of log.entries) entry.row.hidden = !matchesFilter(entry);
    paintLog();
  }

  function clearLog() {
    log.entries = [];
    log.waiting = [];
    page['event-log'].replaceChildren();
    paintLog();
  }

  function togglePause() {
    log.paused = !log.paused;
    page['log-pause'].setAttribute('aria-pressed', String(log.paused));
    paintLog();
  }

  function brief(payload) {
    const json = toJson(payload?.data ?? payload?.error ?? payload);
    return json.replaceAll('":', ': ').replaceAll(',"', ', ').replace(/["{}]/g, '').slice(0, 200);
  }

  function logRow(entry) {
    const iso = entry.at.toISOString();
    const time = `${clock(entry.at)}.${pad(entry.at.getMilliseconds(), 3)}`;
    const json = el('pre', {});
    const details = el('details', {},
      el('summary', {},
        el('time', { dateTime: iso, title: iso }, time),
        el('span', { className: 'direction' }, entry.direction === 'in' ? '↓ in' : '↑ out'),
        el('span', { className: 'name' }, bdi(entry.event)),
        el('span', { className: 'brief' }, entry.re ? `← ${entry.re} · ` : '', bdi(brief(entry.payload))),
        el('span', { className: 'timing', title: entry.timingTitle || '' }, entry.timing || '')),
      json);
    details.addEventListener('toggle', () => { // most rows are never opened
      json.textContent = toJson(entry.payload, 2) || '(no payload)';
    });
    return el('li', { data: { event: entry.event, direction: entry.direction, failed: Boolean(entry.failed) } }, details);
  }

  /* ---------- People ---------- */

  const people = new Map(); // userId -> person: the newest that the server said of them
  const rows = new Map(); // userId -> <li> on the page
  const collator = new Intl.Collator();
  const paintPeopleSoon = later(paintPeople);
  let me = null; // our own userId
  let staleSince = null; // when the list stopped being live

  /** Merges what an event (heard) or an answer said; they can overtake each other, and the version says which is newer. */
  function learn(status, heard = false) {
    const known = people.get(status.userId);
    if (!status.version && status.status === 'offline') { // never seen, or not to be seen any more
      people.delete(status.userId);
      paintPeopleSoon();
      return;
    }
    if (known && status.version < known.version) return;
    if (!known && status.status === 'offline') return; // the list is of who is, or was, here
    const person = known || { userId: status.userId };
    for (const key of ['status', 'lastActive', 'version', 'name']) {
      if (status[key] !== undefined) person[key] = status[key];
    }
    person.statusText = status.statusText ?? null; // whoever comes or goes is told of without one
    person.invisible = status.invisible === true;
    person.learntAt = performance.now();
    people.set(person.userId, person);
    paintPeopleSoon();
    if (status.userId === me && status.statusText !== undefined) showOwn(status, heard);
  }

  /** Reads everyone online, page by page. */
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
      count = data.count;
      cursor = data.nextCursor;
      pages += 1;
    } while (cursor && pages < MAX_PAGES);
    if (me && !seen.has(me)) { // invisible: only we are told the truth
      learn((await request('check-user-status', { userId: me })).data);
    }
    for (const person of people.values()) {
      // Whoever a complete list does not name is offline, unless an event said otherwise meanwhile.
      if (!cursor && !seen.has(person.userId) && person.learntAt < started) person.status = 'offline';
    }
    paintPeopleSoon();
    return { count, pages, rtt: performance.now() - started };
  }

  /** What others are told of us while we are invisible is not what is true; the page shows that we are. */
  const shownStatus = ({ status, invisible }) => (invisible && status !== 'offline' ? 'invisible' : status);

  const nameOf = (person) => String(person.name || '').trim() || person.userId;

  /** Who is online by name, then who has left, the last first. */
  function byPresence(a, b) {
    const goneA = a.status === 'offline';
    const goneB = b.status === 'offline';
    if (goneA !== goneB) return goneA ? 1 : -1;
    if (goneA && a.lastActive !== b.lastActive) return a.lastActive < b.lastActive ? 1 : -1;
    return collator.compare(nameOf(a), nameOf(b)) || collator.compare(a.userId, b.userId);
  }

  function initials(name) {
    const words = name.split(/[\s._-]+/u).filter(Boolean);
    const letters = words.length > 1 ? [words[0], words.at(-1)] : words;
    return letters.map((word) => Array.from(word)[0]).join('').toUpperCase() || '?';
  }

  function hue(userId) {
    return Array.from(userId).reduce((sum, char) => sum + char.codePointAt(0), 0) % 8;
  }

  /** A person's row; one that shows nothing new keeps its nodes, and with them focus and animation. */
  function personRow(person) {
    const { userId } = person;
    const status = shownStatus(person);
    if (!rows.has(userId)) {
      const button = el('button', { type: 'button', className: 'person', title: `Check ${userId}` });
      rows.set(userId, el('li', { data: { userId, hue: hue(userId) } }, button));
    }
    const row = rows.get(userId);
    const name = nameOf(person);
    const shows = [name, status, person.statusText, userId === me].join('\n');
    if (row.shows === shows) return row;
    row.shows = shows;
    row.dataset.status = status;
    row.firstChild.replaceChildren(
      el('span', { className: 'avatar', ariaHidden: 'true' },
        el('span', { className: 'avatar-text' }, initials(name)), el('span', { className: 'dot' })),
      el('span', { className: 'person-main' },
        el('span', { className: 'person-name' }, bdi(name), userId === me ? el('span', { className: 'you' }, 'you') : ''),
        el('span', { className: 'person-id' }, name === userId ? '' : bdi(userId)),
        el('span', { className: 'person-text' }, person.statusText ? bdi(person.statusText) : '')),
      el('span', { className: 'person-side' },
        el('span', { className: 'status-word' }, statusWord(status)),
        el('span', { className: 'seen' })));
    return row;
  }

  function paintPeople() {
    const sorted = [...people.values()].sort(byPresence);
    const focused = document.activeElement;
    const shown = sorted.slice(0, SHOWN_PEOPLE).map(personRow);
    for (const [userId, row] of rows) {
      if (!shown.includes(row)) { row.remove(); rows.delete(userId); }
    }
    shown.forEach((row, index) => {
      const there = page.people.children[index];
      if (there !== row) page.people.insertBefore(row, there || null);
    });
    if (page.people.contains(focused)) focused.focus({ preventScroll: true }); // moving a row drops its focus
    page.people.dataset.stale = Boolean(staleSince);
    page['online-count'].textContent = sorted.filter((person) => person.status !== 'offline' && !person.invisible).length;
    page['people-note'].textContent = peopleNote(sorted.length);
    paintTimes();
  }

  function peopleNote(total) {
    if (staleSince) return `Not live: this is how it was at ${clock(staleSince)}.`;
    if (total > SHOWN_PEOPLE) return `Live. The first ${SHOWN_PEOPLE} of ${total} are shown.`;
    if (total) return 'Live. Click someone to check them.';
    return 'Go online to see who is here.';
  }

  function paintTimes() {
    for (const [userId, row] of rows) {
      const { status, lastActive } = people.get(userId);
      const seen = row.querySelector('.seen');
      seen.textContent = lastActive ? `${status === 'offline' ? 'last seen' : 'active'} ${ago(lastActive)}` : '';
      seen.title = absolute(lastActive);
    }
  }

  function goStale() {
    if (people.size) staleSince ??= new Date();
    paintPeopleSoon();
  }

  function fillCheck(event) {
    const row = event.target.closest('[data-user-id]');
    if (!row) return;
    page['check-user-id'].value = row.dataset.userId;
    if (socket?.connected) checkUser();
  }

  /* ---------- Requests ---------- */

  async function request(event, ...payload) {
    if (!socket?.connected) throw new Error('Not connected. Go online first.');
    if (payload[0] === undefined) payload = [];
    record({ direction: 'out', event, payload: payload[0] });
    const started = performance.now();
    let answer;
    try {
      answer = await socket.timeout(REQUEST_TIMEOUT).emitWithAck(event, ...payload);
    } catch (error) {
      record({ direction: 'in', event: 'no-answer', re: event, payload: { message: error.message }, failed: true });
      throw new Error(socket?.connected ? `No answer within ${REQUEST_TIMEOUT / 1000} s.` : 'The connection was lost.');
    }
    const rtt = performance.now() - started;
    const failed = answer.event === 'error';
    record({
      direction: 'in', event: answer.event, re: event, payload: answer, failed,
      timing: milliseconds(rtt), timingTitle: 'Round trip: from sending the request to its answer',
    });
    if (failed) throw Object.assign(new Error(answer.error.message), answer.error);
    if (people.has(me)) people.get(me).lastActive = new Date().toISOString(); // a request counts as activity
    return { data: answer.data, rtt };
  }

  function show(result, tone, ...content) {
    result.dataset.tone = tone;
    result.replaceChildren(...content);
  }

  /** Runs one action and shows its error, if any, where its result would be. */
  function showing(result, action) {
    return async () => {
      try {
        await action(result);
      } catch ({ code, message, retryAfter }) {
        const retry = retryAfter ? ` · retry in ${retryAfter} s` : '';
        show(result, 'error', `${code ? `${code}: ` : ''}${message}${retry}`);
      }
    };
  }

  const timing = (rtt) => el('span', { className: 'timing', title: 'Round trip' }, `in ${milliseconds(rtt)}`);

  function statusLine(tag, person, ...extra) {
    const { userId, online, statusText, lastActive } = person;
    const status = shownStatus(person);
    const seen = lastActive ? `${online ? 'active' : 'last seen'} ${ago(lastActive)}` : 'never seen';
    return el(tag, { className: 'status-line', data: { userId, status } },
      el('span', { className: 'dot', ariaHidden: 'true' }),
      bdi(userId), ' ', el('span', { className: 'status-word' }, statusWord(status)), ' ',
      ...(statusText ? [el('span', { className: 'person-text' }, bdi(statusText)), ' '] : []),
      el('span', { className: 'timing', title: absolute(lastActive) }, seen), ' ', ...extra);
  }

  const own = { shown: '', edited: false }; // our status as the form has it, and whether somebody is filling the form in
  const OWN_EXPIRY = 'presence-status-expiry';

  const ownKey = (status) => [session.server, me, shownStatus(status), status.statusText ?? ''].join('\n');

  /** The server does not tell until when a status is set: this window remembers what it has asked for. */
  function rememberExpiry(status, expiresIn) {
    const until = expiresIn ? Date.now() + expiresIn * 1000 : 0;
    try {
      sessionStorage.setItem(OWN_EXPIRY, JSON.stringify({ key: ownKey(status), until }));
    } catch { /* a page from a file may have no storage */ }
  }

  /** Until when what is set holds, as a node or none. */
  function expiryOf(status) {
    let known = null;
    try {
      known = JSON.parse(sessionStorage.getItem(OWN_EXPIRY));
    } catch { /* likewise */ }
    if (known?.key !== ownKey(status) || !(known.until > Date.now())) return [];
    const date = new Date(known.until);
    return [el('span', { className: 'timing', title: absolute(date.toISOString()) }, `until ${clock(date)}`), ' '];
  }

  /** Shows what is set, whichever window or time has set it, unless somebody is filling the form in. */
  function showOwn(status, heard) {
    const choice = shownStatus(status);
    // Who is heard to be away may only be inactive. To ask would be activity, so the next answer tells.
    if (choice === 'offline' || (heard && choice === 'away')) return;
    const key = ownKey(status);
    if (key === own.shown) return;
    const nothingYet = !own.shown && choice === 'online' && !status.statusText;
    own.shown = key;
    if (!own.edited) {
      page['status-choice'].value = choice;
      page['status-text'].value = status.statusText ?? '';
      page['status-expiry'].value = '';
    }
    if (!nothingYet) show(page['status-result'], 'ok', statusLine('div', status, ...expiryOf(status)));
  }

  const setStatus = showing(page['status-result'], async (result) => {
    const expiresIn = Number(page['status-expiry'].value) || null;
    const { data, rtt } = await request('set-status', {
      status: page['status-choice'].value,
      statusText: page['status-text'].value.trim() || null,
      expiresIn,
    });
    own.edited = false;
    own.shown = ownKey(data);
    rememberExpiry(data, expiresIn);
    learn(data);
    show(result, 'ok', statusLine('div', data, ...expiryOf(data), timing(rtt)));
  });

  const checkUser = showing(page['check-user-result'], async (result) => {
    const { data, rtt } = await request('check-user-status', { userId: page['check-user-id'].value.trim() });
    learn(data);
    show(result, 'ok', statusLine('div', data, timing(rtt)));
  });

  const checkUsers = showing(page['check-users-result'], async (result) => {
    const userIds = page['check-users-ids'].value.split(/[\s,]+/).filter(Boolean);
    const { data, rtt } = await request('check-users-status', { userIds });
    for (const status of data.statuses) learn(status);
    const online = data.statuses.filter((status) => status.online).length;
    show(result, 'ok', `${online} of ${data.statuses.length} online `, timing(rtt),
      el('ul', {}, ...data.statuses.map((status) => statusLine('li', status))));
  });

  const getOnline = showing(page['get-online-result'], async (result) => {
    const { count, pages, rtt } = await syncPeople();
    show(result, 'ok', `${count} online${pages > 1 ? `, ${pages} pages read` : ''} `, timing(rtt));
  });

  const heartbeat = showing(page['heartbeat-result'], async (result) => {
    lastHeartbeat = Date.now();
    const { rtt } = await request('heartbeat');
    show(result, 'ok', `answered at ${clock(new Date())} `, timing(rtt));
  });

  let lastHeartbeat = 0;

  /** A hidden page stops its heartbeats, so that its user turns away, as in a real application. */
  async function beatWhenDue() {
    const due = Date.now() - lastHeartbeat >= HEARTBEAT_INTERVAL;
    const wanted = page['auto-heartbeat'].checked && document.visibilityState === 'visible';
    if (!due || !wanted || !socket?.connected) return;
    await heartbeat();
    // Others' activity is not pushed: read it again now and then, unless the list is long.
    if (people.size <= 1000) await syncPeople().catch(() => {});
  }

  /* ---------- Tokens ---------- */

  let devTokenUser = null; // whose development token is in the field; null where it was pasted

  function serverUrl() {
    const text = page['server-url'].value.trim();
    if (!/^https?:/.test(text) || !URL.canParse(text)) throw new Error(`The server URL must look like ${DEFAULT_SERVER}.`);
    return new URL(text).origin;
  }

  function setDevToken({ token, userId, expiresAt }) {
    page.token.value = token;
    devTokenUser = userId;
    page['token-hint'].replaceChildren('Development token of ', bdi(userId),
      `, until ${new Date(expiresAt).toLocaleTimeString()}.`);
  }

  function tokenEdited() {
    devTokenUser = null;
    page['token-hint'].textContent = page.token.value ? 'A token of your own.' : 'No token yet.';
  }

  async function fetchDevToken(server, user) {
    let response;
    try {
      response = await fetch(`${server}/dev/token?user=${encodeURIComponent(user)}`,
        { cache: 'no-store', signal: AbortSignal.timeout(REQUEST_TIMEOUT) });
    } catch {
      const { origin } = window; // "null" for a file
      const cors = server === origin ? '' : `, and does CORS_ALLOWED_ORIGINS allow the origin “${origin}”`;
      throw new Error(`Cannot reach ${server}. Is the server running there${cors}?`);
    }
    const answer = await response.json().catch(() => ({}));
    if (response.status === 400) throw new Error(answer.detail);
    if (!response.ok || !answer.token) {
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
    const user = page['user-name'].value.trim();
    clearNotice();
    if (!user) {
      notice('warn', 'Type a user name first.');
      page['user-name'].focus();
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

  /* ---------- Connection ---------- */

  let socket = null;
  let session = null; // {server, token, devUser}: what the present connection was opened with
  let attempt = 0; // a newer connection, or Disconnect, makes the older attempts give up
  let renewed = false; // one automatic renewal per refusal, so that it cannot loop
  let retryTimer = 0;

  function loadScript(src, props) {
    return new Promise((resolve, reject) => {
      const script = el('script', { ...props, src });
      const fail = () => { script.remove(); reject(new Error(src)); };
      script.onload = () => (window.io ? resolve() : fail());
      script.onerror = fail;
      setTimeout(fail, 8000);
      document.head.append(script);
    });
  }

  /** The gateway's own client first: it works without the Internet. */
  async function loadClient(server) {
    if (window.io) return;
    try {
      await loadScript((webPage ? location.origin : server) + CLIENT_PATH);
    } catch {
      await loadScript(CDN, { integrity: CDN_INTEGRITY, crossOrigin: 'anonymous' }).catch(() => {
        throw new Error(`The Socket.IO client loads neither from ${server} nor from cdn.socket.io. ` +
          'Start the server, or correct the server URL, then press Connect again.');
      });
    }
  }

  function setState(state, ...detail) {
    page['connection-state'].dataset.state = state;
    page['connection-state'].replaceChildren(el('span', {}, state, ...detail));
    page.connect.disabled = state !== 'disconnected';
    page.disconnect.disabled = state === 'disconnected';
    for (const button of document.querySelectorAll('[data-needs-connection]')) button.disabled = state !== 'connected';
    document.title = `${state === 'connected' && me ? `${me}, online · ` : ''}Presence test page`;
  }

  function showConnected() {
    setState('connected', ...(me ? [' as ', bdi(me)] : []), ` · ${socket.io.engine.transport.name}`);
  }

  async function goOnline() {
    if (!await getToken()) return;
    rememberInAddress(true);
    await connect();
  }

  /** A reload goes online again; after Disconnect it only keeps the name. */
  function rememberInAddress(autoconnect) {
    const user = encodeURIComponent(page['user-name'].value.trim());
    if (webPage) history.replaceState(null, '', `?user=${user}${autoconnect ? '&autoconnect=1' : ''}`);
  }

  async function connect() {
    close();
    const mine = attempt;
    clearNotice();
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
    const transport = page.transport.value;
    session = { server, token: page.token.value.trim(), devUser: devTokenUser };
    me = devTokenUser;
    own.shown = '';
    own.edited = false;
    show(page['status-result'], 'ok');
    renewed = false;
    staleSince = null;
    people.clear();
    paintPeople();
    socket = window.io(server + NAMESPACE, {
      forceNew: true,
      auth: (send) => send({ token: session.token }), // asked again at each reconnection
      transports: transport === 'auto' ? ['polling', 'websocket'] : [transport],
    });
    socket.on('connect', onConnect);
    socket.on('connect_error', onConnectError);
    socket.on('disconnect', onDisconnect);
    socket.onAny(onEvent);
  }

  function close() {
    attempt += 1;
    clearTimeout(retryTimer);
    if (!socket) return;
    socket.off();
    socket.disconnect();
    socket = null;
    goStale();
  }

  function disconnect() {
    close();
    rememberInAddress(false);
    record({ direction: 'out', event: 'disconnect', payload: { reason: 'by you' } });
    setState('disconnected', ' · by you');
    clearNotice();
  }

  function onConnect() {
    renewed = false;
    staleSince = null;
    lastHeartbeat = Date.now();
    clearNotice();
    const { engine } = socket.io;
    record({ direction: 'in', event: 'connect', payload: { id: socket.id, transport: engine.transport.name } });
    engine.on('upgrade', () => { if (socket?.connected) showConnected(); });
    showConnected();
    for (const person of people.values()) person.version = -1; // a restarted server may count from 1 again
    getOnline();
  }

  function onConnectError(error) {
    const { code, retryAfter = 2 } = error.data || {};
    record({ direction: 'in', event: 'connect_error', payload: { message: error.message, ...error.data }, failed: true });
    if (socket.active) { // the network's fault: socket.io-client tries again by itself
      setState('reconnecting', ` · ${error.message}`);
      notice('warn', `Cannot reach the server (${error.message}). Trying again.`);
    } else if (code === 'SERVER_DRAINING') {
      setState('reconnecting', ` · in ${retryAfter} s`);
      retryTimer = setTimeout(() => socket.connect(), retryAfter * 1000);
    } else if ((code === 'TOKEN_EXPIRED' || code === 'TOKEN_INVALID') && session.devUser && !renewed) {
      // A development server makes a new secret with each start, so an old token may just need replacing.
      reconnectRenewed();
    } else {
      setState('disconnected', ` · ${code || 'refused'}`);
      notice('error', `Refused: ${code ? `${code}, ` : ''}${error.message}. ${REFUSALS[code] || ''}`);
      goStale();
    }
  }

  /** Gets a new development token for the present connection; false where there is none to be had. */
  async function renewToken() {
    const mine = attempt;
    try {
      const answer = await fetchDevToken(session.server, session.devUser);
      if (mine !== attempt) return false;
      if (page.token.value === session.token) setDevToken(answer);
      session.token = answer.token;
      return true;
    } catch (error) {
      if (mine !== attempt) return false;
      explainToken(error);
      return false;
    }
  }

  async function reconnectRenewed() {
    const mine = attempt;
    renewed = true;
    setState('reconnecting', ' · new token');
    const got = await renewToken();
    if (mine !== attempt) return;
    if (got) socket.connect();
    else setState('disconnected', ' · no token');
  }

  function onDisconnect(reason) {
    record({ direction: 'in', event: 'disconnect', payload: { reason }, failed: true });
    goStale();
    if (socket.active) {
      setState('reconnecting', ` · ${reason}`);
    } else {
      setState('disconnected', ` · ${reason}`);
      notice('warn', 'The server ended this connection: the user was disconnected by a backend, or the token ran out.');
    }
  }

  async function onTokenExpired() {
    if (!session.devUser) {
      notice('warn', 'The token has expired: the server disconnects in 10 s. Paste a new one and connect again.');
    } else if (await renewToken()) {
      await request('refresh-token', { token: session.token })
        .catch((error) => notice('error', `refresh-token: ${error.message}`));
    }
  }

  const HANDLERS = {
    connected: (data) => { me = data.userId; showConnected(); paintPeopleSoon(); },
    'user-online': (data) => {
      learn({ ...data, lastActive: data.timestamp });
      paintPeople();
      rows.get(data.userId)?.classList.add('arrived');
    },
    'user-offline': learn,
    'user-status-changed': (data) => learn(data, true),
    'token-expired': onTokenExpired,
    'server-draining': () => notice('warn', 'The server is about to stop. This page reconnects by itself.'),
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

  /* ---------- Start ---------- */

  function linkSecondWindow() {
    const other = page['user-name'].value.trim() === 'bob' ? 'alice' : 'bob';
    page['second-window'].href = `?user=${other}&autoconnect=1`;
  }

  function on(id, type, handler) {
    page[id].addEventListener(type, (event) => {
      if (type === 'submit') event.preventDefault();
      handler(event);
    });
  }

  on('identity-form', 'submit', goOnline);
  on('user-name', 'input', linkSecondWindow);
  on('connection-form', 'submit', connect);
  on('disconnect', 'click', disconnect);
  on('get-token', 'click', getToken);
  on('token', 'input', tokenEdited);
  on('people', 'click', fillCheck);
  on('people', 'animationend', (event) => event.target.closest('li').classList.remove('arrived'));
  on('status-form', 'submit', setStatus);
  on('status-form', 'input', () => { own.edited = true; });
  on('check-user-form', 'submit', checkUser);
  on('check-users-form', 'submit', checkUsers);
  on('get-online', 'click', getOnline);
  on('heartbeat', 'click', heartbeat);
  on('auto-heartbeat', 'change', beatWhenDue);
  on('log-filter', 'input', filterLog);
  on('log-pause', 'click', togglePause);
  on('log-clear', 'click', clearLog);
  document.addEventListener('visibilitychange', beatWhenDue);
  setInterval(() => { paintTimes(); beatWhenDue(); }, 1000);

  const query = new URLSearchParams(location.search);
  page['server-url'].value = webPage ? location.origin : DEFAULT_SERVER;
  page['user-name'].value = query.get('user') || page['user-name'].value;
  linkSecondWindow();
  if (query.get('autoconnect') === '1') goOnline();
})();
