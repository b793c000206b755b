/*
 * Presence gateway, in the browser: the token, when it expires, and how a new one is got.
 * Part of presence-client.js.
 */

const LONGEST_MARGIN = 60_000; // a token is renewed so many milliseconds before it expires, or a fifth of its life if that is less

/** What went wrong, with the gateway's code. */
export class PresenceError extends Error {
  constructor(code, message, retryAfter) {
    super(message);
    this.name = 'PresenceError';
    this.code = code;
    if (retryAfter !== undefined) this.retryAfter = retryAfter;
  }
}

/** The claims of a JWT, unverified; null if it is not a JWT. */
function claimsOf(token) {
  try {
    const base64 = token.split('.')[1].replaceAll('-', '+').replaceAll('_', '/');
    const claims = JSON.parse(new TextDecoder().decode(Uint8Array.from(atob(base64), (char) => char.charCodeAt(0))));
    return claims && typeof claims === 'object' ? claims : null;
  } catch {
    return null;
  }
}

/** Identifies a token's user: all of its claims as text, without those that differ from token to token. Null if unknown. */
export function subjectOf(token) {
  const claims = claimsOf(token);
  if (claims?.sub === undefined) return null;
  const lasting = Object.entries(claims).filter(([name]) => !['exp', 'iat', 'nbf', 'jti'].includes(name));
  return JSON.stringify(lasting.sort(([one], [other]) => (one < other ? -1 : 1)));
}

/** Asks the page for tokens, one at a time, and keeps the last. */
export class Tokens {
  #getToken;
  #renewing = null;
  #endsAt = Infinity;
  #margin = 0;

  /** The last that the page gave; null for none. */
  token = null;

  constructor(getToken) {
    this.#getToken = getToken;
  }

  /** When to have a new one: milliseconds on this machine's clock; Infinity where the token does not say. */
  get dueAt() {
    return this.#endsAt - this.#margin;
  }

  /** The last token while it is good for a while; otherwise a new one. */
  async current() {
    return this.token && Date.now() < this.dueAt ? this.token : this.renew();
  }

  /** Take the last one as ended, whatever it says of itself. */
  spend() {
    this.#endsAt = 0;
  }

  /** Ask the page for another; null where it has none. Rejects as the page's function does. */
  renew() {
    this.#renewing ??= this.#ask().finally(() => { this.#renewing = null; });
    return this.#renewing;
  }

  async #ask() {
    const token = await this.#getToken();
    this.token = typeof token === 'string' && token ? token : null;
    const now = Date.now();
    const { exp = Infinity, iat } = claimsOf(this.token ?? '') ?? {};
    const lifetime = (exp - (iat ?? now / 1000)) * 1000;
    // A clock that is behind would take a token for too long; to one that is ahead it looks ended, which the server decides.
    this.#endsAt = Math.min(exp * 1000 > now ? exp * 1000 : Infinity, now + (lifetime > 0 ? lifetime : Infinity));
    this.#margin = Math.min(LONGEST_MARGIN, Math.max(lifetime, 0) / 5);
    return this.token;
  }
}
