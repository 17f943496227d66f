"""What an output is worth: metrics over a finished table."""
