"""The Pusher protocol: its frames, its codes, its signatures. Nothing here opens a connection."""
