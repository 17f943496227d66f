"""Where pictures come from, and what is in them."""
