"""What goes in and comes out: tables, their cells, and what they mean."""
