"""What is imported of it."""
