"""The HTTP client: a pool of keep-alive connections to one upstream, and answers that are read while they arrive."""
