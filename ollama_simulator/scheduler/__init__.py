"""Ollama's scheduler on virtual cards: one queue, loads, runners, endings."""
