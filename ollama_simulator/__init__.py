"""A simulated Ollama: the real API and the real scheduling rules, on virtual GPUs."""
