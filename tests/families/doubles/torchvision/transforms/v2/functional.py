"""What is imported of it."""

from .. import InterpolationMode

__all__ = ["InterpolationMode"]
