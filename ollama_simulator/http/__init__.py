"""HTTP/1.1 with the behaviour of Go's net/http and gin, and injected faults."""
