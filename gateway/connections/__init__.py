"""A live connection, and the life of all of them, the same for every door: greeting, requests, expiry, end."""
