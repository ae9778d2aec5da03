"""The simulated machine: its cards, their memory, and what a runner allocates."""
