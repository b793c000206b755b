"""Channels over HTTP, for backends: who is in them, what is said, and who has to leave."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import UNSET

from gateway.channels.events import native_name
from gateway.channels.wire import (
    ChannelEvent,
    ChannelHistory,
    ChannelMembers,
    ChannelsQuery,
    HistoryQuery,
    OccupiedChannel,
    OccupiedChannels,
    Reauthorized,
    SaidInChannel,
    SayInChannel,
    TakenOut,
    members_of,
)
from gateway.doors.http import Call, Caller, Operation
from gateway.wire import timestamp

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.channels.inprocess import InProcessChannels


def channel_operations(channels: InProcessChannels) -> Sequence[Operation]:
    """The rows of the HTTP door's table.

    Args:
        channels: where it is done.
    """

    async def occupied(call: Call) -> OccupiedChannels:
        found = channels.occupied(call.query.prefix, tenant=call.tenant)
        return OccupiedChannels(
            [
                OccupiedChannel(each.channel, each.subscriptions, UNSET if each.users is None else each.users)
                for each in found
            ]
        )

    async def members(call: Call) -> ChannelMembers:
        channel = call.path["channel"]
        found = channels.members(channel, tenant=call.tenant)
        return ChannelMembers(channel, members_of((each.user_id, each.profile) for each in found))

    async def history(call: Call) -> ChannelHistory:
        query: HistoryQuery = call.query
        after = None if query.since is None else int(query.since)
        found = await channels.history(call.path["channel"], after=after, limit=query.limit, tenant=call.tenant)
        events = [
            ChannelEvent(native_name(said.event), said.data, str(said.position), timestamp(said.at))
            for said in found.events
        ]
        return ChannelHistory(call.path["channel"], events, found.recovered, str(found.position))

    async def say(call: Call) -> SaidInChannel:
        body: SayInChannel = call.body
        said = await channels.say(call.path["channel"], body.event, body.data, keep=body.keep, tenant=call.tenant)
        return SaidInChannel(None if said is None else str(said))

    async def remove(call: Call) -> TakenOut:
        await channels.remove(call.path["channel"], call.path["id"], tenant=call.tenant)
        return TakenOut(call.path["channel"])

    async def reauthorize(call: Call) -> Reauthorized:
        await channels.reauthorize(call.path["id"], tenant=call.tenant)
        return Reauthorized(call.path["id"])

    return (
        Operation(
            method="GET",
            path="/api/channels",
            summary="The channels that somebody is in",
            caller=Caller.SERVICE,
            query=ChannelsQuery,
            answers=OccupiedChannels,
            handler=occupied,
        ),
        Operation(
            method="GET",
            path="/api/channels/{channel}/members",
            summary="The members of a presence channel",
            caller=Caller.SERVICE,
            answers=ChannelMembers,
            handler=members,
        ),
        Operation(
            method="GET",
            path="/api/channels/{channel}/history",
            summary="What was said in a channel",
            caller=Caller.SERVICE,
            query=HistoryQuery,
            answers=ChannelHistory,
            handler=history,
        ),
        Operation(
            method="POST",
            path="/api/channels/{channel}/events",
            summary="Say something in a channel",
            caller=Caller.SERVICE,
            body=SayInChannel,
            answers=SaidInChannel,
            handler=say,
        ),
        Operation(
            method="DELETE",
            path="/api/channels/{channel}/members/{id}",
            summary="Take a user out of a channel, on every node",
            caller=Caller.SERVICE,
            answers=TakenOut,
            handler=remove,
        ),
        Operation(
            method="POST",
            path="/api/users/{id}/reauthorize",
            summary="Ask again whether a user may be in the channels they are in",
            caller=Caller.SERVICE,
            answers=Reauthorized,
            handler=reauthorize,
        ),
    )
