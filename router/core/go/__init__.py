"""What Go does: its JSON, its struct types, its durations, its quoting. Nothing here knows of models."""
