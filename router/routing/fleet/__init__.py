"""Several Ollamas behind one router: where a request goes, and where it goes next if that fails."""
