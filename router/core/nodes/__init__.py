"""What fronts and nodes say to each other: a node's state, its models, a call, and a call that is declined. Pure."""
