"""Model folders from the hub, when asked."""
