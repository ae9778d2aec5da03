"""Several Ollamas: which of them a request goes to, by one decision each. Pure."""
