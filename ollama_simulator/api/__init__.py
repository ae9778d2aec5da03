"""Ollama's HTTP API: its own routes, OpenAI's and Anthropic's dialects."""
