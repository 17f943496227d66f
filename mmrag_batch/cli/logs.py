"""What a command logs, on stderr."""

import logging

from mmrag_batch.masking import MaskingFormatter


def start_logging(level: int = logging.INFO) -> None:
    """Show what this package logs from `level` on, and the warnings of others, secrets masked."""
    handler = logging.StreamHandler()
    handler.setFormatter(MaskingFormatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    logging.basicConfig(handlers=[handler], force=True)
    logging.getLogger("mmrag_batch").setLevel(level)
