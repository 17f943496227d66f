"""What generates, one module an engine."""
