"""Release policies: steps of traffic that a new version walks through by itself, as far as evidence lets it."""
