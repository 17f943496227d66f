"""What a command logs, on stderr."""

import logging

from mmrag_batch.masking import MaskingFormatter


def start_logging(level: int = logging.INFO) -> None:
    """Show what this package logs from `level` on, and the warnings of others, secrets masked; of
    others all but their details where ours are shown."""
    handler = logging.StreamHandler()
    handler.setFormatter(MaskingFormatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    others = logging.INFO if level < logging.INFO else logging.WARNING
    logging.basicConfig(handlers=[handler], level=others, force=True)
    logging.getLogger("mmrag_batch").setLevel(level)
