"""Who is online: the model, the store and its log, and what every node builds from it.

Data goes one way: a door's command reaches the `tracker`, which commits it in the `store`; the store appends
what changed to its log; the `follower` reads the log into the `view` and hands it to the `fanout` and the hooks.
"""
