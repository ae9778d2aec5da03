"""A request's body: read, checked, rewritten for another model."""
