"""HTTP/1.1 as Go's net/http and gin speak it, and the faults that can be ordered."""
