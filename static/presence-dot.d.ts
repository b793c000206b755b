import type { PresenceClient, StatusName } from "./presence-client.js";

/** Let all dots of the page show what a client knows; null for none. */
export function setPresence(presence: PresenceClient | null): void;

/**
 * `<presence-dot user-id="bob" label="Bob">`: a user's status as a dot, which says it in words, too: its `aria-label` and
 * its tooltip are "Bob: do not disturb, writing until noon". It watches its user while it is in the document.
 *
 * Each status has a shape of its own. The page's styles find it as `presence-dot[status="away"]` and
 * `presence-dot::part(dot)`, `::part(away)`; and set `--presence-dot-size`, `--presence-online`, `--presence-away`,
 * `--presence-busy`, `--presence-dnd`, `--presence-offline` and `--presence-unknown`.
 */
export class PresenceDot extends HTMLElement {
  /** What the statuses are called, in all dots: in another language, say. */
  static words: Record<StatusName | "unknown", string>;
  /** The client of this dot; the page's by default. */
  presence: PresenceClient | null;
  /** The attribute `user-id`. */
  userId: string;
  /** What it shows; `unknown` before it was heard. */
  readonly status: StatusName | "unknown";
  /** Show anew. */
  refresh(): void;
}

declare global {
  interface HTMLElementTagNameMap {
    "presence-dot": PresenceDot;
  }
}
