/*
 * Presence gateway: the operators' page.
 * It asks the HTTP API with the service key that was typed in, which is kept in sessionStorage and nowhere else.
 * User ids, nodes and what clients said of themselves are hostile input: they reach the page as text nodes only.
 */
(function () {
  'use strict';

  const KEY = 'presence-admin-key';
  const TENANT = 'presence-admin-tenant';
  const INTERVAL = 1500; // between two looks
  const REQUEST_TIMEOUT = 10000;
  const HOOKS_EVERY = 2; // looks between two at webhooks
  const WINDOW = 180000; // what a chart shows at the most
  const NARROW = 15000; // and at the least
  const SURE = 5000; // how long a button waits to be pressed again
  const LETTERS = 100;
  const SVG = 'http://www.w3.org/2000/svg';
  const [WIDTH, HEIGHT] = [240, 52];

  const page = {}; // every element with an id
  for (const node of document.querySelectorAll('[id]')) page[node.id] = node;

  let session = null; // {key, tenant, looks, access, waiting, hooks: false where there are none}; another object for another sign-in
  let shown = null; // the user that is explained

  /* ---------- Small helpers ---------- */

  function el(tag, props, ...children) {
    const { data, ...rest } = props;
    const node = Object.assign(document.createElement(tag), rest);
    Object.assign(node.dataset, data);
    node.append(...children);
    return node;
  }

  const bdi = (text) => el('bdi', {}, String(text)); // keeps right-to-left tricks in a name inside that name
  const word = (tone, text) => el('span', { className: 'word', data: { tone } }, text);
  const hint = (...content) => el('p', { className: 'hint' }, ...content);

  function duration(seconds) {
    if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
    if (seconds < 60) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
    if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
    if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
    return `${Math.floor(seconds / 86400)} d`;
  }

  const secondsTo = (later, now) => (Date.parse(later) - Date.parse(now)) / 1000;
  const time = (iso) => el('time', { dateTime: iso, title: iso }, new Date(iso).toLocaleTimeString());

  function notice(tone, ...content) {
    page.notice.hidden = content.length === 0;
    page.notice.dataset.tone = tone;
    page.notice.replaceChildren(...content);
  }

  function state(name, text) {
    page.state.dataset.state = name;
    page.state.textContent = text;
  }

  class Refused extends Error {
    constructor(status, detail) {
      super(detail);
      this.status = status;
    }
  }

  /** Calls the API in a session; what it answers comes to nobody who has signed out meanwhile. */
  async function call(of, method, path, body) {
    const url = `api/${path}${path.includes('?') ? '&' : '?'}tenant=${encodeURIComponent(of.tenant || 'default')}`;
    const headers = { 'X-API-Key': of.key };
    if (body !== undefined) headers['Content-Type'] = 'application/json';
    const response = await fetch(url, {
      method, headers, cache: 'no-store', credentials: 'omit', redirect: 'error',
      body: body === undefined ? undefined : JSON.stringify(body),
      signal: AbortSignal.timeout(REQUEST_TIMEOUT),
    });
    let said = null;
    try { said = await response.json(); } catch { /* it is none */ }
    if (!response.ok) throw new Refused(response.status, said?.detail ?? `the gateway answered ${response.status}`);
    return said;
  }

  /** A button that does something to others: pressed twice. Its words are text, whatever they hold. */
  function dangerous(text, sure, testId, act) {
    const button = el('button', { type: 'button', className: 'danger', data: { testid: testId } }, text);
    let timer = 0;
    const disarm = () => {
      clearTimeout(timer);
      delete button.dataset.armed;
      button.replaceChildren(text);
    };
    button.addEventListener('click', async () => {
      if (button.dataset.armed) {
        disarm();
        button.disabled = true;
        try { await act(); } finally { button.disabled = false; }
      } else {
        button.dataset.armed = 'true';
        button.replaceChildren(...sure());
        timer = setTimeout(disarm, SURE);
      }
    });
    return button;
  }

  /* ---------- Charts ---------- */

  const series = {};

  function chart(name, value, unit) {
    const now = Date.now();
    const points = (series[name] ??= []);
    points.push([now, value]);
    while (points.length > 2 && points[1][0] < now - WINDOW) points.shift();
    const span = Math.min(WINDOW, Math.max(NARROW, now - points[0][0]));
    const most = Math.max(1e-9, ...points.map(([, each]) => each));
    const place = ([at, each]) =>
      `${(WIDTH - ((now - at) / span) * WIDTH).toFixed(1)},${(HEIGHT - 2 - (each / most) * (HEIGHT - 6)).toFixed(1)}`;
    const line = points.map(place).join(' L');
    const first = (WIDTH - ((now - points[0][0]) / span) * WIDTH).toFixed(1);
    const svg = page[`${name}-chart`];
    svg.setAttribute('viewBox', `0 0 ${WIDTH} ${HEIGHT}`);
    svg.setAttribute('preserveAspectRatio', 'none');
    svg.setAttribute('aria-label', `now ${unit(value)}, at the most ${unit(most < 1e-8 ? 0 : most)} in the last three minutes`);
    const paths = [['area', `M${first},${HEIGHT} L${line} L${WIDTH},${HEIGHT} Z`], ['line', `M${line}`]];
    svg.replaceChildren(...paths.map(([className, d]) => {
      const path = document.createElementNS(SVG, 'path');
      path.setAttribute('class', className);
      path.setAttribute('d', d);
      return path;
    }));
    page[name].textContent = unit(value);
  }

  const count = (value) => Math.round(value).toLocaleString('en');

  /* ---------- What is seen ---------- */

  function nodeState(node) {
    if (!node.report) return ['bad', 'silent'];
    if (node.report.storeAway !== null) return ['bad', 'store away'];
    if (node.report.draining) return ['warn', 'draining'];
    return ['good', 'serving'];
  }

  function other(names) {
    const said = word('warn', 'other settings');
    said.title = `${names.join(', ')}: set them as the node has them that answers`;
    return said;
  }

  function nodeRow(node, now, last) {
    const report = node.report;
    const left = node.leaseUntil === null ? null : secondsTo(node.leaseUntil, now);
    const cell = (...content) => el('td', {}, ...content);
    const name = el('td', { className: 'name' }, bdi(node.id));
    if (node.here) name.append(' ', el('span', { className: 'here' }, 'answers'));
    const row = el('tr', { data: { node: node.id, testid: 'node' } }, name,
      cell(word(...nodeState(node)), ...(node.differs.length ? [' ', other(node.differs)] : [])),
      cell(report ? count(report.connections) : ''),
      cell(report ? count(report.users) : ''),
      cell(left === null ? word('bad', 'none') : left > 0 ? duration(left) : word('bad', 'ran out')),
      cell(report && report.logLag !== null ? duration(report.logLag) : ''),
      cell(report ? `${report.clockOffset < 0 ? '−' : '+'}${Math.abs(report.clockOffset).toFixed(3)} s` : ''),
      cell(report ? duration(Math.max(0, secondsTo(now, report.startedAt))) : ''),
      cell(report ? report.version : ''));
    const actions = cell();
    if (session.access === 'full' && report) {
      const path = `admin/nodes/${encodeURIComponent(node.id)}`;
      const sure = () => [last ? 'No other takes clients. Really?' : 'Really?'];
      actions.append(report.draining
        ? dangerous('Undrain', () => ['Really?'], 'undrain', () => act(`${path}/undrain`))
        : dangerous('Drain', sure, 'drain', () => act(`${path}/drain${last ? '?force=true' : ''}`)));
    }
    row.append(actions);
    return row;
  }

  function paintNodes({ nodes, timestamp }) {
    page['node-count'].textContent = nodes.length;
    const armed = page.nodes.querySelector('[data-armed]');
    const known = new Map([...page.nodes.children].map((row) => [row.dataset.node, row]));
    const taking = nodes.filter(({ report }) => report && !report.draining);
    page.nodes.replaceChildren(...nodes.map((node) => {
      const row = nodeRow(node, timestamp, taking.every((each) => each === node));
      const before = known.get(node.id);
      if (armed && before?.contains(armed)) row.lastChild.replaceWith(before.lastChild); // it is about to be pressed
      return row;
    }));
  }

  function paint(overview) {
    const reports = overview.nodes.map((node) => node.report).filter(Boolean);
    const hooks = reports.flatMap((report) => report.webhooks ?? []);
    chart('online', overview.online, count);
    chart('connections', reports.reduce((sum, report) => sum + report.connections, 0), count);
    chart('log-lag', Math.max(0, ...reports.map((report) => report.logLag ?? 0)), duration);
    chart('waiting', session.waiting, count); // what the queues say, which a sender knows a little later
    const lag = Math.max(0, ...hooks.map((each) => each.lag));
    if (lag >= 1) page.waiting.textContent += ` for ${duration(lag)}`;
    paintNodes(overview);
    page.access.hidden = false;
    page.access.dataset.access = overview.access;
    page.access.textContent = overview.access === 'full' ? overview.tenant : `${overview.tenant}, read only`;
  }

  function paintExplained(user, said) {
    const { status } = said;
    const head = el('p', { className: 'status-line', data: { status: status.status } },
      el('span', { className: 'dot' }), bdi(user), el('span', { className: 'status-word' }, status.status));
    if (status.statusText) head.append(' ', bdi(status.statusText));
    const parts = [head, hint(said.because)];
    const list = (title, things) => {
      if (things.length) parts.push(el('h3', {}, title), el('ul', { className: 'things' }, ...things));
    };
    list('Connections', said.connections.map((each) => {
      const about = [each.page, each.userAgent].filter(Boolean).flatMap((text) => [bdi(text), ' ']);
      return el('li', { data: { testid: 'connection' } },
        el('span', {}, `${each.door} on `, bdi(each.node), ' since ', time(each.connectedAt)),
        hint(...about), hint(bdi(each.id)));
    }));
    list('Leases', Object.entries(said.leases).map(([node, until]) => el('li', {}, el('span', {}, bdi(node), ' until ', time(until)))));
    list('Last changes', said.transitions.toReversed().map((each) =>
      el('li', {}, el('span', {}, `${each.version}: ${each.was} → ${each.status} at `, time(each.timestamp)), hint(each.reason))));
    page.explained.replaceChildren(...parts);
  }

  function letterRow(letter) {
    const row = el('li', { data: { letter: letter.id, testid: 'letter' } },
      el('span', {}, el('strong', {}, letter.type), ` to ${letter.endpoint}, ${letter.attempts} attempts: `, bdi(letter.reason)),
      el('span', { className: 'id' }, letter.id));
    if (session.access === 'full') {
      const button = el('button', { type: 'button', data: { testid: 'replay' } }, 'Replay');
      button.addEventListener('click', () => replay({ ids: [letter.id], endpoint: letter.endpoint }));
      row.append(button);
    }
    row.append(el('pre', {}, JSON.stringify(letter.body)));
    return row;
  }

  let letters = '';

  function paintHooks(endpoints, dead) {
    page['dead-count'].textContent = dead.count;
    page.endpoints.replaceChildren(...endpoints.map((each) => el('li', {}, bdi(each.name),
      el('span', {}, `${each.waiting} waiting, ${each.dead} dead`),
      each.stopped ? word('bad', `stopped: ${each.stopped}`) : word('good', each.configured ? 'sending' : 'configured no more'))));
    const now = JSON.stringify(dead.letters.map((letter) => [letter.endpoint, letter.id, letter.failedAt]));
    if (now === letters) return; // a button that is about to be pressed stays
    letters = now;
    page.letters.replaceChildren(...dead.letters.map(letterRow));
    page['replay-place'].replaceChildren();
    if (session.access === 'full' && dead.count) {
      page['replay-place'].append(dangerous('Replay all', () => [`Really all ${dead.count}?`], 'replay-all', () => replay({ all: true })));
    }
  }

  /* ---------- What is done ---------- */

  async function act(path) {
    const of = session;
    try {
      await call(of, 'POST', path);
    } catch (error) {
      if (of === session) notice('error', error.message);
    }
  }

  async function replay(which) {
    const of = session;
    try {
      const { count: sent } = await call(of, 'POST', 'webhooks/replay', which);
      page.replayed.dataset.tone = 'good';
      page.replayed.textContent = `${sent} sent again`;
      await lookAtHooks(of);
    } catch (error) {
      if (of !== session) return;
      page.replayed.dataset.tone = 'error';
      page.replayed.textContent = error.message;
    }
  }

  async function explain(user, said = []) {
    const of = session;
    try {
      const answer = await call(of, 'GET', `users/${encodeURIComponent(user)}/explain`);
      if (of !== session) return;
      shown = user;
      paintExplained(user, answer);
      page.explained.prepend(...said);
    } catch (error) {
      if (of === session) page.explained.replaceChildren(word('error', error.message));
    }
  }

  async function kick() {
    const of = session;
    const user = page.user.value;
    try {
      const { closed } = await call(of, 'DELETE', `users/${encodeURIComponent(user)}/connections`);
      await explain(user, [el('p', { data: { testid: 'kicked' } }, `closed ${closed} connections of `, bdi(user))]);
    } catch (error) {
      if (of === session) page.explained.replaceChildren(word('error', error.message));
    }
  }

  async function lookAtHooks(of) {
    if (of.hooks === false) return;
    try {
      const [{ endpoints }, dead] = await Promise.all([
        call(of, 'GET', 'webhooks'), call(of, 'GET', `webhooks/dead-letters?limit=${LETTERS}`),
      ]);
      of.waiting = endpoints.reduce((sum, each) => sum + each.waiting, 0);
      if (of === session) paintHooks(endpoints, dead);
    } catch (error) {
      if (of !== session || error.status !== 404) throw error;
      of.hooks = false;
      page.endpoints.replaceChildren(el('li', { className: 'hint' }, 'No webhook is configured.'));
    }
  }

  async function look(of) {
    const overview = await call(of, 'GET', 'admin/overview');
    if (of !== session) return;
    if (of.access === null) enter(of, overview.access);
    if (of.looks++ % HOOKS_EVERY === 0) await lookAtHooks(of);
    if (of === session) paint(overview);
  }

  async function watch(of) {
    while (of === session) {
      try {
        await look(of);
        if (of !== session) return;
        page.console.dataset.stale = 'false';
        state('connected', 'live');
      } catch (error) {
        if (of !== session) return;
        if (error.status === 401 || error.status === 403 || of.access === null) {
          leave();
          const away = error.name === 'TypeError' || error.name === 'TimeoutError';
          notice('error', away ? 'The gateway does not answer, or the key has letters that no key has.' : error.message);
          return;
        }
        page.console.dataset.stale = 'true';
        state('reconnecting', 'no answer; trying again');
      }
      await new Promise((resolve) => setTimeout(resolve, INTERVAL));
    }
  }

  function enter(of, access) {
    of.access = access;
    sessionStorage.setItem(KEY, of.key);
    sessionStorage.setItem(TENANT, of.tenant);
    notice('info');
    page.key.value = '';
    page['sign-in'].hidden = true;
    page.console.hidden = page['sign-out'].hidden = false;
    page['kick-place'].replaceChildren();
    if (access === 'full') {
      page['kick-place'].append(dangerous('Kick', () => ['Really kick?'], 'kick', kick));
    }
  }

  function leave() {
    session = null;
    shown = null;
    letters = '';
    sessionStorage.removeItem(KEY);
    for (const name of Object.keys(series)) delete series[name];
    for (const id of ['nodes', 'explained', 'endpoints', 'letters', 'replay-place', 'kick-place', 'replayed']) page[id].replaceChildren();
    page.console.hidden = page['sign-out'].hidden = page.access.hidden = true;
    page['sign-in'].hidden = false;
    state('disconnected', 'signed out');
  }

  function signIn(key, tenant) {
    session = { key, tenant, looks: 0, access: null, waiting: 0 };
    state('connecting', 'asking');
    watch(session);
  }

  page['key-form'].addEventListener('submit', (event) => {
    event.preventDefault();
    if (page.key.value) signIn(page.key.value, page.tenant.value);
  });
  page['user-form'].addEventListener('submit', (event) => {
    event.preventDefault();
    if (page.user.value) explain(page.user.value);
  });
  page.user.addEventListener('input', () => {
    if (page.user.value !== shown) page.explained.replaceChildren(); // what is kicked is what is read
  });
  page['sign-out'].addEventListener('click', () => { leave(); notice('info'); page.key.focus(); });

  page.tenant.value = sessionStorage.getItem(TENANT) ?? '';
  const key = sessionStorage.getItem(KEY);
  if (key) signIn(key, page.tenant.value);
})();
