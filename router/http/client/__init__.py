"""The way to an upstream: a pool of keep-alive connections, and answers read as they come."""
