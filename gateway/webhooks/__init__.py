"""Webhooks: what was committed is told to endpoints by HTTP, at least once, in order per user.

A transition is written to the `outbox` in the step that commits it. One node at a time, by a duty, moves what is there
into a queue for each endpoint that wants it, and sends it (`sender`, `courier`); what an endpoint did not take in time
is a dead letter, until somebody has it sent again.
"""
