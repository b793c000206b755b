// presence-react.js and presence-vue.js where pages are rendered on a server, which has no window. Run by
// test_js_frameworks.py.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';

import { createElement } from 'react';
import { renderToString as renderReact } from 'react-dom/server';
import { createSSRApp, h } from 'vue';
import { renderToString as renderVue } from 'vue/server-renderer';

import * as ofReact from '../../static/presence-react.js';
import * as ofVue from '../../static/presence-vue.js';
import { tenant } from './client.mjs';
import { presence } from './dom.mjs';

const shown = (status, state) => `${status === undefined ? 'undefined' : status.status}, ${state}`;
const clients = { 'a client': () => presence(tenant(), 'alice', { connect: false }), 'no client': () => ({ client: null }) };

test('servers of React\'s own components are told that it is for browsers, before anything else', () => {
  const code = readFileSync(new URL('../../static/presence-react.js', import.meta.url), 'utf8');
  assert.match(code.replace(/\/\*.*?\*\//s, '').trim(), /^'use client';/);
});

for (const [kind, make] of Object.entries(clients)) {
  test(`React with ${kind} renders what is not known, and watches nobody`, () => {
    assert.equal(typeof window, 'undefined');
    const { client, held } = make();
    const Status = () => shown(ofReact.usePresence('bob'), ofReact.usePresenceState());
    const page = createElement(ofReact.PresenceProvider, { client }, createElement(Status));
    assert.equal(renderReact(page), 'undefined, closed');
    assert.equal(held?.size ?? 0, 0);
  });

  test(`Vue with ${kind} renders what is not known, and watches nobody`, async () => {
    const { client, held } = make();
    const app = createSSRApp({
      setup() {
        const [status, state] = [ofVue.usePresence('bob'), ofVue.usePresenceState()];
        return () => h('p', shown(status.value, state.value));
      },
    });
    assert.equal(await renderVue(app.use(ofVue.createPresence(client))), '<p>undefined, closed</p>');
    assert.equal(held?.size ?? 0, 0);
  });
}
