"""Where the nodes of a front are: a list, the addresses of a name, or the endpoints of a Service."""
