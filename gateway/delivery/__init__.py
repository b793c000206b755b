"""Notifications: what an application sends to a user's connections, and the queue in which they wait for the user."""
