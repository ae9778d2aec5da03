"""Ollama's own rules: names, routes, facts of a model, options, the scheduler and its bookkeeping of memory."""
