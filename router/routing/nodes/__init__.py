"""A node's side of requests that fronts send: what it says of itself, and the calls that it takes or declines."""
