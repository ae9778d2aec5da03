"""The simulated machine: its cards, who holds what of them, and what a runner takes."""
