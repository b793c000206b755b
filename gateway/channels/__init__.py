"""Channels: who is in them, who may enter them, what is said in them, and how that reaches this node's clients.

Data goes the way that it goes for presence. A door gives a command to `channels.Channels`, the one executor. Who is in
a channel is committed in a second store of the kind that presence has, and read from its log. What is said goes onto
the bus of all nodes, in one order, and is sent to clients from there, even on the node where it was said.
"""
