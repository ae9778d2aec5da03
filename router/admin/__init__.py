"""The admin listener: explanation, state, recent decisions, metrics and the dashboard."""
