"""Whether a Redis carries a gateway: reachable, quick, new enough, and allowed all that the gateway asks of it."""

from __future__ import annotations

import asyncio
import secrets
import statistics
import time
from typing import TYPE_CHECKING, Any

from gateway.operators.findings import Finding, error, ok, warning
from gateway.operators.tables import inert
from gateway.redis.connection import connect, connection_errors, describe, pipeline
from gateway.redis.keys import base_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.redis.connection import Client
    from gateway.settings import Settings

TIMEOUT = 3.0
"""Seconds that Redis may take to answer."""

OLDEST = (6, 2)
"""The version that it is to have at least."""

PINGS = 20

SLOW, TOO_SLOW = 5.0, 100.0
"""Milliseconds of a round trip: past the first everybody feels it, past the second leases are in danger."""

APART, TOO_FAR_APART = 1000, 30_000
"""Milliseconds between this machine's clock and Redis's: the first is what ``/health/ready`` warns of; with the second
tokens are refused that are good, or taken that are not."""

FULL = 0.9
"""Of ``maxmemory``, what may be in use."""

_FIELDS = {"list": "l", "hash": "h", "set": "s", "zset": "z", "stream": "x", "text": "t"}


def tries(base: str) -> dict[str, list[Any]]:
    """One call of each command that the gateway and its scripts give, on keys of a doctor's own.

    Args:
        base: what these keys begin with.
    """
    k = {name: base + short for name, short in _FIELDS.items()}
    text, hashed, listed, members, scores, stream = (
        k[name] for name in ("text", "hash", "list", "set", "zset", "stream")
    )
    calls: list[list[Any]] = [
        ["SET", text, "1", "PX", 60_000],
        ["GET", text],
        ["EXISTS", text],
        ["PEXPIRE", text, 60_000],
        ["TIME"],
        ["HSET", hashed, "a", 1],
        ["HSETNX", hashed, "a", 1],
        ["HGET", hashed, "a"],
        ["HMGET", hashed, "a"],
        ["HGETALL", hashed],
        ["HVALS", hashed],
        ["HLEN", hashed],
        ["HEXISTS", hashed, "a"],
        ["HINCRBY", hashed, "a", 1],
        ["HRANDFIELD", hashed],
        ["HDEL", hashed, "b"],
        ["LPUSH", listed, "a", "b"],
        ["RPUSH", listed, "c"],
        ["LSET", listed, 0, "d"],
        ["LINDEX", listed, 0],
        ["LRANGE", listed, 0, -1],
        ["LREM", listed, 1, "a"],
        ["LTRIM", listed, 0, 10],
        ["RPOP", listed],
        ["SADD", members, "a"],
        ["SSCAN", members, 0],
        ["SREM", members, "a"],
        ["ZADD", scores, 1, "a"],
        ["ZCARD", scores],
        ["ZSCORE", scores, "a"],
        ["ZRANGE", scores, 0, -1],
        ["ZREVRANGE", scores, 0, -1],
        ["ZRANGEBYSCORE", scores, 0, 1],
        ["ZREM", scores, "a"],
        ["XADD", stream, "*", "a", "1"],
        ["XLEN", stream],
        ["XRANGE", stream, "-", "+"],
        ["XREVRANGE", stream, "+", "-"],
        ["XREAD", "COUNT", 1, "STREAMS", stream, "0"],
        ["XTRIM", stream, "MAXLEN", 10],
        ["XDEL", stream, "1-1"],
        ["EVAL", "return redis.call('GET', KEYS[1])", 1, text],
        ["EVALSHA", "0" * 40, 1, text],
        ["DEL", text, hashed, listed],
        ["UNLINK", members, scores, stream],
    ]
    return {str(call[0]): call for call in calls}


async def examine_redis(settings: Settings) -> list[Finding]:
    """Look at the Redis that the settings name."""
    url = settings.redis
    if url is None:
        return [
            warning(
                "redis",
                "REDIS_URL is not set: presence is kept in the process, for one node, and ends with it",
                "set REDIS_URL where there is to be more than one node, or where it is to outlive a restart",
            )
        ]
    client = connect(url, timeout=TIMEOUT)
    try:
        return await _examine(client, describe(url), settings.redis_prefix)
    except connection_errors as problem:
        return [_unreachable(describe(url), problem)]
    finally:
        await client.aclose()


async def _examine(client: Client, where: str, prefix: str) -> list[Finding]:
    (pong,) = await pipeline(client, [["PING"]])
    if isinstance(pong, Exception) and "MISCONF" not in str(pong):  # as one answers that cannot write: more of it below
        return [_unreachable(where, pong)]
    info, trips = await _ask_info(client), await _measure(client)
    if str(info.get("role", "master")) != "master":
        advice = "set REDIS_URL to the master, or to redis+sentinel://… which finds it"
        return [error("redis", f"{where} is a replica, which takes no writes", advice)]
    found = [ok("redis", f"{where} answers"), *_version(info), *_latency(trips)]
    found += [*await _persistence(client, info), *_memory(info), *await _clock(client)]
    return [*found, *await _commands(client, base_of(prefix) + f"doctor:{secrets.token_hex(6)}:")]


def _unreachable(where: str, problem: Exception) -> Finding:
    said = inert(str(problem) or type(problem).__name__)
    advice = "start it, or set REDIS_URL to where it is; a firewall may be between"
    if any(word in said for word in ("WRONGPASS", "NOAUTH", "password", "Authentication")):
        advice = "set REDIS_URL to redis://user:password@…, with the user and the password that it has"
    elif "NOPERM" in said:
        advice = "give its user PING, and what else the gateway asks: ACL SETUSER … +@all -@dangerous"
    elif where.startswith("rediss") and "Timeout" in said:
        advice += "; where it speaks no TLS, it is redis:// and not rediss://"
    elif "reset" in said or "closed" in said:
        advice += "; where it speaks TLS, it is rediss:// and not redis://"
    elif "certificate" in said.lower() or "ssl" in said.lower():
        advice = "it asks for TLS, or its certificate is not trusted: rediss://…?ssl_ca_certs=/path/to/ca.crt"
    return error("redis", f"{where} does not serve: {said}", advice)


async def _ask_info(client: Client) -> Mapping[str, Any]:
    """What Redis says of itself; empty where it does not."""
    (said,) = await pipeline(client, [["INFO"]])
    if isinstance(said, dict):
        return said
    if isinstance(said, bytes):
        lines = [line.partition(":") for line in said.decode(errors="replace").splitlines() if ":" in line]
        return {name: value for name, _, value in lines}
    return {}


async def _measure(client: Client) -> list[float]:
    """How long round trips take, in milliseconds."""
    trips = []
    for _ in range(PINGS):
        begun = time.perf_counter()
        await pipeline(client, [["PING"]])
        trips.append((time.perf_counter() - begun) * 1000)
    return trips


def _version(info: Mapping[str, Any]) -> list[Finding]:
    text = str(info.get("redis_version", ""))
    numbers = text.split(".")
    if len(numbers) < len(OLDEST) or not all(part.isdigit() for part in numbers[:2]):
        return [
            warning("redis", "its version is not to be had", "allow its user INFO, so that this can look at more of it")
        ]
    if (int(numbers[0]), int(numbers[1])) < OLDEST:
        return [error("redis", f"version {inert(text)}", "the gateway needs Redis 6.2 or newer, or Valkey")]
    return [ok("redis", f"version {inert(text)}")]


def _latency(trips: list[float]) -> list[Finding]:
    usual, longest = statistics.median(trips), max(trips)
    said = f"a round trip takes {usual:.2f} ms, {longest:.2f} ms at the most of {len(trips)}"
    advice = "put it nearer to the gateways, on a machine that is not busy, and look at SLOWLOG GET"
    if usual > TOO_SLOW:
        return [error("redis", said, advice)]
    return [warning("redis", said, advice) if usual > SLOW else ok("redis", said)]


async def _persistence(client: Client, info: Mapping[str, Any]) -> list[Finding]:
    found = []
    for name, what in (("rdb_last_bgsave_status", "its last snapshot"), ("aof_last_write_status", "its last append")):
        if str(info.get(name, "ok")) != "ok":
            found.append(
                error("redis", f"{what} failed ({name})", "look at its log: a full disk, or no memory to fork")
            )
    if str(info.get("aof_enabled", "")) == "1":
        return [*found, ok("redis", "it keeps what it has over a restart (appendonly)")]
    (said,) = await pipeline(client, [["CONFIG", "GET", "save"]])
    saves = _named(said).get("save")
    if saves is None:
        return [*found, ok("redis", "whether it keeps anything over a restart is not to be had (CONFIG GET save)")]
    if saves:
        return [*found, ok("redis", f"it keeps snapshots (save {inert(saves)})")]
    return [
        *found,
        warning(
            "redis",
            "it keeps nothing over a restart: nodes give presence back, but what waits for users and webhooks, what was"
            " said in channels and which tokens are revoked is lost",
            "set appendonly yes where that matters",
        ),
    ]


def _named(said: Any) -> dict[str, str]:
    """A reply of names and values, which is a dict or flat."""
    if isinstance(said, dict):
        pairs = list(said.items())
    elif isinstance(said, list):
        pairs = list(zip(said[::2], said[1::2], strict=False))
    else:
        return {}
    return {_text(name): _text(value) for name, value in pairs}


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _memory(info: Mapping[str, Any]) -> list[Finding]:
    if "maxmemory_policy" not in info:
        return []
    policy, most, used = str(info["maxmemory_policy"]), int(info.get("maxmemory", 0)), int(info.get("used_memory", 0))
    found = []
    if policy != "noeviction":
        said = f"maxmemory-policy is {inert(policy)}: full, it would forget users, leases and logs"
        advice = "CONFIG SET maxmemory-policy noeviction, and in redis.conf"
        # Without a limit it evicts nothing, until somebody sets one.
        found.append(error("redis", said, advice) if most else warning("redis", said, advice))
    if most and used > FULL * most:
        said = f"{used >> 20} of {most >> 20} MB are in use: full, it takes no more changes"
        found.append(warning("redis", said, "raise maxmemory, or move to a larger machine"))
    return found or [ok("redis", "it evicts nothing (maxmemory-policy noeviction)")]


async def _clock(client: Client) -> list[Finding]:
    before = time.time()
    (said,) = await pipeline(client, [["TIME"]])
    after = time.time()
    if isinstance(said, Exception):
        return []  # which the commands say
    seconds, micros = (float(_text(part)) for part in said)
    apart = round(((before + after) / 2 - seconds - micros / 1_000_000) * 1000)
    if abs(apart) <= APART:
        return [ok("redis", f"its clock and this machine's are {abs(apart)} ms apart")]
    said = f"this machine's clock is {abs(apart) / 1000:.1f} s {'ahead of' if apart > 0 else 'behind'} Redis's"
    advice = "have both set by NTP (timedatectl set-ntp true): presence goes by Redis's, tokens expire by this one"
    return [error("redis", said, advice) if abs(apart) > TOO_FAR_APART else warning("redis", said, advice)]


async def _commands(client: Client, base: str) -> list[Finding]:
    """Give every command that the gateway gives, on keys of our own."""
    refused: dict[str, str] = {}
    calls = tries(base)
    for name, call in calls.items():
        (said,) = await pipeline(client, [call])
        if isinstance(said, Exception) and not (
            name == "EVALSHA" and "NOSCRIPT" in f"{said} {type(said).__name__}".upper()
        ):
            refused[name] = inert(str(said))
    await asyncio.gather(*(pipeline(client, [["DEL", base + short]]) for short in _FIELDS.values()))
    if not refused:
        return [ok("redis", f"all {len(calls)} commands that the gateway gives are allowed, scripts among them")]
    advice = f"ACL SETUSER … {' '.join(f'+{name.lower()}' for name in sorted(refused))}, and the keys ~{{PREFIX}}:*"
    first = next(iter(refused.values()))
    if any(word in first for word in ("MISCONF", "READONLY", "OOM", "maxmemory")):
        advice = "look at its log and its memory: it takes no writes"
    return [error("redis", f"it refuses {', '.join(sorted(refused))}: {first}", advice)]
