"""A front: which node a request goes to, and the way there. It owns no card, and keeps nothing that others need."""
