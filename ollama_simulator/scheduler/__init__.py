"""Ollama's scheduler on virtual cards: queue, loads, runners, unloads."""
