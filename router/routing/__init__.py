"""The routing of one request: its chain, the decision, the way to the backend and back."""
