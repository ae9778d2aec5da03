"""An Ollama-compatible router that sends each request to the biggest variant that runs fully on the GPU now."""

__version__ = "0.1.0"
