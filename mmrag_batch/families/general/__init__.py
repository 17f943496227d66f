"""Models whose own processor prepares their images."""
