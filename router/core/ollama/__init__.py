"""What Ollama says and does: names, routes, model facts, options, its scheduler and its bookkeeping."""
