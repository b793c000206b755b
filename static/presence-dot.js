/*
 * Presence gateway: <presence-dot user-id="bob">, a user's status as a dot. Its types are in presence-dot.d.ts.
 *
 *   import { setPresence } from './presence-dot.js';
 *   setPresence(presence); // a PresenceClient, for all dots of the page
 */

const WORDS = { online: 'online', away: 'away', busy: 'busy', dnd: 'do not disturb', offline: 'offline', unknown: 'unknown' };

// Each status has a shape of its own, for those to whom colours say nothing.
const STYLE = `
  :host { display: inline-block; inline-size: var(--presence-dot-size, 0.75em); block-size: var(--presence-dot-size, 0.75em); }
  :host([hidden]) { display: none; }
  svg { display: block; inline-size: 100%; block-size: 100%; overflow: visible; }
  [part~="dot"] { color: var(--presence-unknown, #8b95a1); transition: color 0.2s; }
  [part~="online"] { color: var(--presence-online, #1a8f4c); }
  [part~="away"] { color: var(--presence-away, #b86e00); }
  [part~="busy"] { color: var(--presence-busy, #cf2f3a); }
  [part~="dnd"] { color: var(--presence-dnd, #cf2f3a); }
  [part~="offline"] { color: var(--presence-offline, #66717e); }
  @media (prefers-reduced-motion: reduce) { [part~="dot"] { transition: none; } }
  @media (forced-colors: active) { [part~="dot"] { color: CanvasText; } }
`;

const SHAPES = {
  online: [['circle', { cx: 8, cy: 8, r: 8 }]], // full
  away: [['path', { d: 'M8 0a8 8 0 1 0 8 8 6 6 0 0 1-8-8Z' }]], // a moon
  busy: [['path', { d: 'M8 0 16 8 8 16 0 8Z' }]], // a diamond
  dnd: [['path', { d: 'M8 0a8 8 0 1 0 0 16A8 8 0 0 0 8 0ZM3.5 6.5h9v3h-9Z', 'fill-rule': 'evenodd' }]], // full, with a bar
  offline: [['circle', { cx: 8, cy: 8, r: 6.5, fill: 'none', stroke: 'currentColor', 'stroke-width': 3 }]], // a ring
  unknown: [['circle', { cx: 8, cy: 8, r: 6.5, fill: 'none', stroke: 'currentColor', 'stroke-width': 2, 'stroke-dasharray': '3 3' }]],
};

let common = null; // the client of all dots that have none of their own
const shown = new Set(); // the dots of the page
let sheet = null;

export function setPresence(presence) {
  common = presence;
  for (const dot of shown) dot.refresh();
}

function draw(name, attributes) {
  const node = document.createElementNS('http://www.w3.org/2000/svg', name);
  for (const [attribute, value] of Object.entries(attributes)) node.setAttribute(attribute, value);
  return node;
}

export class PresenceDot extends HTMLElement {
  /** What the statuses are called, for all dots. */
  static words = { ...WORDS };

  static get observedAttributes() {
    return ['user-id', 'label'];
  }

  #own = null;
  #unwatch = null;
  #drawing;
  #labelled = false; // whether the page has said what the dot is called

  constructor() {
    super();
    if (!sheet) {
      sheet = new CSSStyleSheet(); // no <style>, which a Content-Security-Policy may forbid
      sheet.replaceSync(STYLE);
    }
    const root = this.attachShadow({ mode: 'open' });
    root.adoptedStyleSheets = [sheet];
    this.#drawing = draw('svg', { viewBox: '0 0 16 16', fill: 'currentColor', 'aria-hidden': 'true' });
    root.append(this.#drawing);
  }

  get presence() {
    return this.#own ?? common;
  }

  set presence(presence) {
    this.#own = presence;
    this.refresh();
  }

  get userId() {
    return this.getAttribute('user-id') ?? '';
  }

  set userId(userId) {
    this.setAttribute('user-id', userId);
  }

  get status() {
    return this.presence?.get(this.userId)?.status ?? 'unknown';
  }

  connectedCallback() {
    shown.add(this);
    this.#labelled = this.hasAttribute('aria-label') || this.hasAttribute('aria-labelledby');
    if (!this.hasAttribute('role')) this.setAttribute('role', 'img');
    this.refresh();
  }

  disconnectedCallback() {
    shown.delete(this);
    this.#unwatch?.();
    this.#unwatch = null;
    if (!this.#labelled) this.removeAttribute('aria-label');
  }

  attributeChangedCallback(name) {
    if (!shown.has(this)) return;
    if (name === 'user-id') this.refresh();
    else this.#paint();
  }

  /** Watch whom it is to show, now, and show what is known. */
  refresh() {
    if (!shown.has(this)) return;
    const before = this.#unwatch;
    this.#unwatch = null;
    try {
      if (this.userId) this.#unwatch = this.presence?.watch(this.userId, () => this.#paint()) ?? null;
    } catch (error) {
      console.warn(`presence-dot: ${error.message}`);
    }
    before?.(); // after the new one, so that what stays the same is not asked for anew
    this.#paint();
  }

  #paint() {
    const { status } = this;
    const text = this.presence?.get(this.userId)?.statusText;
    const shape = SHAPES[status] ?? SHAPES.unknown;
    this.#drawing.setAttribute('part', `dot ${status}`);
    this.#drawing.replaceChildren(...shape.map(([name, attributes]) => draw(name, attributes)));
    this.setAttribute('status', status); // for the page's own styles
    const words = [PresenceDot.words[status] ?? status, text].filter(Boolean).join(', ');
    const said = [this.getAttribute('label') ?? this.userId, words].filter(Boolean).join(': ');
    if (!this.#labelled) this.setAttribute('aria-label', said);
    this.title = said;
  }
}

if (!customElements.get('presence-dot')) customElements.define('presence-dot', PresenceDot);
