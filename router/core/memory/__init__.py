"""Bytes: what a model's weights, caches, graph and compute buffers take, and where llama.cpp places them."""
