"""Which settings two nodes are to have alike, and how they find that they have not."""

from __future__ import annotations

import json
from typing import Any

import pytest
from conftest import SECRET, make_settings

from gateway.operators.agreement import differing, digests

HOOKS = [{"name": "one", "url": "https://a.example/hook", "secret": "whsec_" + "QUJD" * 8}]


def compare(one: dict[str, Any], other: dict[str, Any]) -> tuple[str, ...]:
    return differing(digests(make_settings(**one)), digests(make_settings(**other)))


def test_nodes_that_are_given_the_same_agree_wherever_they_are() -> None:
    assert compare({"port": 3000, "log_level": "DEBUG"}, {"port": 3001, "drain_rate": "7/s"}) == ()
    keys = ({"service_api_keys": "first,second"}, {"service_api_keys": "second,first"})
    assert compare(*keys) == ()
    assert compare({"node_lease": "15"}, {"node_lease": 15.0}) == ()
    assert compare(*[{"presence_webhooks": json.dumps(HOOKS)}] * 2) == ()


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"jwt_secret": SECRET[::-1]}, "JWT_SECRET"),
        ({"service_api_keys": "another-key"}, "SERVICE_API_KEYS"),
        ({"presence_offline_grace": 7}, "PRESENCE_OFFLINE_GRACE"),
        ({"node_lease": 31}, "NODE_LEASE"),
        ({"rate_limit_messages": "1/s"}, "RATE_LIMIT_MESSAGES"),
        ({"admin_ui_password": "x" * 30}, "ADMIN_UI_PASSWORD"),
        ({"presence_webhooks": json.dumps(HOOKS)}, "PRESENCE_WEBHOOKS"),
    ],
)
def test_what_one_has_otherwise_is_named(given: dict[str, Any], named: str) -> None:
    assert compare({}, given) == (named,)


def test_another_secret_of_a_webhook_is_another_setting() -> None:
    other = [HOOKS[0] | {"secret": "whsec_" + "REVG" * 8}]
    hooks = ({"presence_webhooks": json.dumps(each)} for each in (HOOKS, other))
    assert compare(*hooks) == ("PRESENCE_WEBHOOKS",)


def test_what_is_told_is_too_short_to_find_a_key_by_it() -> None:
    told = digests(make_settings())
    assert {"jwt_secret", "service_api_keys"} <= told.keys()
    assert all(0 <= digest < 2**16 for digest in told.values())
    assert digests(make_settings(redis_prefix="other"))["jwt_secret"] != told["jwt_secret"]


def test_what_only_one_knows_is_of_another_version() -> None:
    assert differing({"a": 1, "b": 2}, {"b": 2, "c": 3}) == ()
