"""What an operator can do about a model that is too big."""
