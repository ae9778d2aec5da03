"""One Ollama: what is known of it, what is loaded there, who waits for it."""
