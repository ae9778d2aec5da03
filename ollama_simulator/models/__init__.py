"""The installed models, and the text that they generate."""
