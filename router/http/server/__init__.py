"""The way to clients: a listening socket, its connections, one request and its answer after the other."""
