"""Channels: who is in them, who may be, what is said in them, and how it reaches this node's clients.

Data goes the way that presence goes. A door gives a command to `channels.Channels`, the one executor; who is in a
channel is committed in a store of presence's make and read from its log; what is said goes onto the bus of all nodes,
in one order, and is told from there, on the node where it was said too.
"""
