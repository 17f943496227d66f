"""The checkpoints of a run that may be killed at any time, also while it writes one."""

import json
import shutil
from pathlib import Path

from transformers.trainer_callback import TrainerState

STATE = "trainer_state.json"
"""The file that transformers writes last."""


def last_checkpoint(directory: Path) -> Path | None:
    """The newest whole checkpoint; what was being written when a run was killed is removed."""
    checkpoints = {}
    for path in directory.glob("checkpoint-*"):
        try:
            checkpoints[TrainerState.load_from_json(str(path / STATE)).global_step] = path
        except (FileNotFoundError, json.JSONDecodeError, TypeError):
            shutil.rmtree(path)
    return checkpoints[max(checkpoints)] if checkpoints else None
