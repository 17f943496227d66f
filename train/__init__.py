"""Training: the demo world, encoders, the retriever and the generator."""
