"""The ways in: each translates one protocol to commands and reads, and holds no rule of presence."""
