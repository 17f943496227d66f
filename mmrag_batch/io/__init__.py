"""Tables and images in, the answer table out."""
