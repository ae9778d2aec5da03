"""An Ollama that only pretends: the real API and the real scheduler rules, on virtual GPUs (scheduler.md)."""
