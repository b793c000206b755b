"""Webhooks: committed changes, sent to HTTP endpoints at least once, and in order for each user.

A transition is written into the `outbox` in the step that commits it. One node at a time, chosen by a `Duty`, moves the
events from there into the queue of each endpoint that wants them (`sender`), and sends them (`courier`). An event that
its endpoint has not accepted in time becomes a dead letter, which an operator can list and replay.
"""
