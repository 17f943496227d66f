"""What is imported of it."""

ImageReadMode = None
decode_image = None
