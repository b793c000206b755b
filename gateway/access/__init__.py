"""Who is let in, from where, and how much they may do: tokens, origins, addresses, admission, rates and caps."""
