"""Recordings of a real Ollama and of real llama.cpp plans: reading and replaying them."""
