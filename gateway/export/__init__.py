"""Presence in a database of SQL, for questions about the past: who was online when, for how long.

`exporter` reads the log and says what is to be written, `sessions` makes of changes who was online from when to when,
`database` and `tables` are the only modules that use SQLAlchemy, and are imported only where an export is asked for.
"""
