"""Which variant of a chain serves a request now, and what must change on the cards for it."""
