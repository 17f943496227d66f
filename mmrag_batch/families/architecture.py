"""Which checkpoints the engines can run, told from config.json before a weight is loaded."""

import json
from pathlib import Path
from typing import Any

from mmrag_batch.errors import MissingError, UnavailableError

ARCHITECTURE = "MllamaForConditionalGeneration"


def read_config(generator_dir: Path) -> dict[str, Any]:
    """config.json of a generator directory.

    Raises MissingError where there is none, UnavailableError for a model of another architecture.
    """
    file = generator_dir / "config.json"
    if not file.is_file():
        raise MissingError(f"{file} is missing; export the generator again.")
    config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    found = config.get("architectures") or ["none"]
    if found != [ARCHITECTURE]:
        raise UnavailableError(
            f"{file} names the architecture {', '.join(found)}; the engines here run "
            f"{ARCHITECTURE} (Llama 3.2 Vision). Export a generator of that."
        )
    return config
