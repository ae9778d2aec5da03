"""One Ollama: its known state, its loaded models, and the requests that wait for it."""
