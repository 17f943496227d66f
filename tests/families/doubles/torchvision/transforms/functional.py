"""What is imported of it."""

pil_to_tensor = None
to_pil_image = None
