"""Breaks a cluster of real processes in every way that it must survive, and checks what every client saw."""
