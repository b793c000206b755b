"""Channels as one part of a gateway: their own store, log and view, the executor and the messages, wired together."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from gateway.channels.audience import ChannelAudience
from gateway.channels.authorization import Authorizer
from gateway.channels.backend import HTTPBackend
from gateway.channels.channels import Channels
from gateway.channels.log_memory import MemoryChannelLog
from gateway.channels.log_redis import RedisChannelLog
from gateway.channels.membership import Membership, timing_of
from gateway.channels.messages import Messages
from gateway.channels.receipts_memory import MemoryReceipts
from gateway.channels.receipts_redis import RedisReceipts
from gateway.channels.statuses import Statuses
from gateway.channels.subscriptions import RedisSubscriptions, Subscriptions
from gateway.channels.typists import Typists
from gateway.presence.follower import Follower
from gateway.presence.store_memory import MemoryStore
from gateway.presence.store_redis import RedisStore
from gateway.presence.tracker import Tracker
from gateway.presence.view import View
from gateway.redis.keys import CHANNELS
from gateway.webhooks.outbox_memory import MemoryOutbox

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gateway.channels.authorization import ChannelRule
    from gateway.channels.log import ChannelLog
    from gateway.channels.messages import MessageRule
    from gateway.channels.receipts import Receipts
    from gateway.nodes.bus import Bus
    from gateway.presence.clock import Clock
    from gateway.presence.follower import Listener
    from gateway.presence.store import Store
    from gateway.presence.visibility import Visibility
    from gateway.recovery.recovery import Recovery
    from gateway.redis.connection import Client
    from gateway.runtime.timers import Scheduler
    from gateway.settings import Settings
    from gateway.tracing import Tracing
    from gateway.webhooks.notes import Notes
    from gateway.webhooks.outbox import Outbox


class ChannelsPart:
    """Builds everything that channels need, and starts, runs and closes it.

    Args:
        settings: how the gateway runs.
        node: this node's name.
        clock: the time.
        scheduler: the event loop.
        client: how to reach Redis; None without it.
        bus: what nodes hear of each other by.
        presence: who is invisible.
        visibility: who may see whom; None where everyone sees everyone.
        recovery: what keeps events for those who lost their connection; None where nobody recovers.
        rule: the application's, of who may be in which channel; None where it has none.
        message_rule: the application's, of who may write to whom; None where it has none.
        namespaces: of Socket.IO, whose clients recover.
        listeners: called with each batch of news of who is in channels, and which are occupied.
        outbox: where what webhooks tell waits; None where none are sent.
        notes: what takes in what webhooks tell besides; likewise.
        tracing: what traces commands; None where nothing does.
    """

    def __init__(  # noqa: PLR0913 - each is another part of the gateway
        self,
        settings: Settings,
        node: str,
        clock: Clock,
        scheduler: Scheduler,
        client: Client | None,
        bus: Bus,
        *,
        presence: View,
        visibility: Visibility | None,
        recovery: Recovery | None,
        rule: ChannelRule | None = None,
        message_rule: MessageRule | None = None,
        namespaces: Sequence[str] = (),
        listeners: Sequence[Listener] = (),
        outbox: Outbox | None = None,
        notes: Notes | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        timing, kept = timing_of(settings.timing()), settings.channel_kept()
        log: ChannelLog
        if client is None:
            keep = outbox.keep if isinstance(outbox, MemoryOutbox) else None
            self._store: Store = MemoryStore(timing, begin=clock() << 20, keep=keep)
            log = MemoryChannelLog(bus, kept, begin=clock() << 20)
            receipts: Receipts = MemoryReceipts(kept.ttl)
        else:
            receipts = RedisReceipts(client, settings.redis_prefix, kept.ttl)
            length = 0 if outbox is None else settings.webhook_queue_size
            self._store = RedisStore(client, settings.redis_prefix, timing, outbox_length=length, part=CHANNELS)
            log = RedisChannelLog(client, settings.redis_prefix, node, bus, kept)
        view = View()
        audience = ChannelAudience(
            scheduler,
            settings.presence_flush_interval,
            visibility,
            view,
            clock,
            None if tracing is None else tracing.flushed,
        )
        self.audience = audience
        told: list[Listener] = [audience.publish]
        self._follower = Follower(self._store, view, told)
        make_tracker: Callable[..., Tracker] = Tracker
        make_channels: Callable[..., Channels] = Channels
        make_messages: Callable[..., Messages] = Messages
        if tracing is not None:
            make_tracker, make_channels, make_messages = tracing.steps, tracing.channels, tracing.messages
            self._store.trace = log.trace = tracing.current
            told.append(tracing.publish)
        tracker = make_tracker(node, self._store, self._follower, clock, away_after=timing.away_after)
        self.membership = Membership(tracker, self._follower, presence)
        self.subscriptions = Subscriptions(self.membership)
        """Counts the connections in channels, on all nodes."""
        if client is not None:
            self.subscriptions = RedisSubscriptions(
                self.membership, client, settings.redis_prefix, node, keep=settings.node_lease, clock=clock
            )
        url = settings.channel_auth_url
        self.backend = None if url is None else HTTPBackend(url)
        self.authorizer = Authorizer(rule, self.backend)
        self.channels = make_channels(
            self.membership,
            log,
            audience,
            self.authorizer,
            bus,
            clock,
            subscriptions=self.subscriptions,
            visibility=visibility,
            recovery=recovery,
            namespaces=namespaces,
            most=settings.max_channels_per_connection,
        )
        if notes is not None:
            self.channels.on_client_event, self.channels.on_cache_miss = notes.client_event, notes.cache_miss
            self.subscriptions.listeners.append(notes.count)
        self.statuses = Statuses(
            audience, self.membership, presence, scheduler, settings.presence_flush_interval, visibility
        )
        told += [self.statuses.publish_members, *listeners]
        self.messages = make_messages(
            self.channels,
            self.authorizer,
            receipts,
            Typists(self.channels, scheduler, clock),
            clock,
            visibility=visibility,
            rule=message_rule,
        )

    async def start(self) -> None:
        """Take a lease, and load the first snapshot of who is in which channel.

        Raises:
            StoreUnavailableError: the store cannot be reached; `run` tries again.
        """
        await self.membership.tracker.tick()
        await self._follower.start()

    async def run(self) -> None:
        """Keep the lease, follow the log and exchange counts, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.membership.tracker.run())
            tasks.create_task(self._follower.run())
            tasks.create_task(self.subscriptions.run())

    async def close(self) -> None:
        """Close everything. Call it when `run` has ended."""
        async with AsyncExitStack() as closing:
            closing.push_async_callback(self._store.close)
            if self.backend is not None:
                closing.push_async_callback(self.backend.close)
            closing.push_async_callback(self.subscriptions.close)
            closing.push_async_callback(self.channels.close)
            closing.push_async_callback(self.messages.close)
            closing.callback(self.statuses.close)
