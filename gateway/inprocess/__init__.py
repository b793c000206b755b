"""What an application's own code has of the gateway in its process: calls and hooks."""
