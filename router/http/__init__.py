"""HTTP/1.1 as bytes, in both directions. Knows no model; imports errors only."""
