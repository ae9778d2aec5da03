"""Bytes: what weights, caches, graph and compute buffers of a model take, and where llama.cpp places them."""
