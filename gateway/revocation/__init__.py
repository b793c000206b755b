"""Tokens that are taken back: by their id, or all of a user's or a tenant's that were issued before some time."""
