"""``python -m gateway webhooks list|replay|resume|forget``: dead letters, where they are in Redis."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway import wire
from gateway.errors import ConfigurationError, InvalidPayloadError, NotFoundError, StoreUnavailableError
from gateway.redis.commands import TIMEOUT
from gateway.redis.connection import connect
from gateway.webhooks.outbox_redis import RedisOutbox
from gateway.webhooks.sender import forget, letters, replay

if TYPE_CHECKING:
    from collections.abc import Collection

    from gateway.settings import Settings
    from gateway.webhooks.outbox import Outbox

IN_THE_PROCESS = (
    "REDIS_URL is not set: without Redis, dead letters live in the process that serves, and it is to be asked:\n"
    '  curl -H "X-API-Key: $KEY" http://HOST:PORT/api/webhooks/dead-letters\n'
    '  curl -H "X-API-Key: $KEY" -H "Content-Type: application/json" -d \'{"all": true}\''
    " http://HOST:PORT/api/webhooks/replay\n"
    "KEY is one of its SERVICE_API_KEYS"
)


async def run(
    settings: Settings,
    action: str,
    ids: Collection[str] = (),
    *,
    everything: bool = False,
    endpoint: str | None = None,
    force: bool = False,
) -> str:
    """Carry one command out.

    Args:
        settings: where Redis is, and what its keys begin with.
        action: ``list``, ``replay``, ``resume`` or ``forget``.
        ids: which dead letters to send again.
        everything: all of them.
        endpoint: of which endpoint; None for all, but to forget one.
        force: forget it where the settings name no endpoint at all, and so do not say which are in use.

    Returns:
        What to print.

    Raises:
        ConfigurationError: it cannot be done so; the message says what to do.
    """
    if settings.redis is None:
        raise ConfigurationError(IN_THE_PROCESS)
    if action == "replay" and everything == bool(ids):
        raise ConfigurationError("webhooks replay takes ids, or --all; webhooks list shows them")
    configured = {each.name for each in settings.webhook_endpoints()}
    if action == "forget" and not configured and not force:
        raise ConfigurationError(
            "no webhook endpoint is configured here, so which ones the nodes have cannot be told: give this command"
            " the PRESENCE_WEBHOOK_URL and PRESENCE_WEBHOOKS that they have, or --force where they have none either"
        )
    client = connect(settings.redis, timeout=TIMEOUT)
    outbox = RedisOutbox(client, settings.redis_prefix, settings.webhook_bounds())
    try:
        match action:
            case "list":
                return await _list(outbox, endpoint, configured)
            case "replay":
                return await _replay(outbox, None if everything else ids, endpoint)
            case "forget":
                waited, dead = await forget(outbox, endpoint or "", configured)
                return f"{endpoint} is forgotten, with {dead} dead letters; {waited} events waited for it"
            case _:
                return await _resume(outbox, endpoint)
    except (InvalidPayloadError, NotFoundError) as error:
        raise ConfigurationError(str(error)) from None
    except StoreUnavailableError as error:
        raise ConfigurationError(f"Redis cannot be reached: {error}") from None
    finally:
        await outbox.close()
        await client.aclose()


async def _list(outbox: Outbox, endpoint: str | None, configured: Collection[str]) -> str:
    found = await letters(outbox, endpoint)
    lines = [
        f"{letter.message.id}  {name}  {letter.message.type}  {wire.timestamp(letter.message.at)}"
        f"  {letter.attempts} attempts until {wire.timestamp(letter.failed_at)}: {letter.reason}"
        for name, letter in found
    ]
    for name, state in (await outbox.states()).items():
        if endpoint in {None, name}:
            stopped = "" if state.stopped is None else f", and nothing is sent to it: {state.stopped}"
            gone = (
                "; configured no more: webhooks forget lets go of it" if configured and name not in configured else ""
            )
            lines.append(f"{name}: {state.dead} dead letters; {state.waiting} events wait{stopped}{gone}")
    return "\n".join(lines) or "no webhook was ever sent from here: REDIS_PREFIX says where to look"


async def _replay(outbox: Outbox, ids: Collection[str] | None, endpoint: str | None) -> str:
    replayed = await replay(outbox, ids, endpoint)
    missing = sorted(set(ids or ()) - {found for _name, found in replayed})
    if missing:
        raise ConfigurationError(
            f"{len(replayed)} are sent again; there is no dead letter {', '.join(missing)}: webhooks list shows them"
        )
    return f"{len(replayed)} are sent again"


async def _resume(outbox: Outbox, endpoint: str | None) -> str:
    known = await outbox.states()
    if endpoint is not None and endpoint not in known:
        raise NotFoundError(f"there is no webhook endpoint {endpoint!r}; there are {', '.join(known) or 'none'}")
    resumed = [name for name in known if endpoint in {None, name} and await outbox.resume(name)]
    return f"sent to again: {', '.join(resumed)}" if resumed else "no endpoint was stopped"
