"""A simulated Ollama, the router and clients on one virtual clock: for the demo, benches and tests."""
