"""HTTP/1.1 as bytes, in both directions. Knows nothing of models; imports only `router.errors`."""
