"""What the nodes of a cluster tell each other besides presence, and what one of them does for all."""
