"""What is installed, and what the models say."""
