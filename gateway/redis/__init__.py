"""What the gateway needs of Redis: connections, scripts, streams."""
