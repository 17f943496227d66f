"""A double of torchvision, of which there is no build for this torch: the names that are imported
by code for images and videos that is not run here. Pillow prepares all images."""

__version__ = "0.0"
