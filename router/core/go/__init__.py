"""The rules of Go that Ollama's bodies and error texts follow: JSON, struct types, durations, quoting."""
