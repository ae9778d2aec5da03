"""Ollama's API as clients see it."""
