"""What a model of the hub is called: `hf:owner/name@revision`, in place of a folder."""

import re
from pathlib import Path
from typing import Literal, NamedTuple

from mmrag_batch.declare import HUB
from mmrag_batch.errors import ConfigError

Part = Literal["retriever", "towers", "generator", "adapter"]
"""What a folder is to be, which says what of a model is fetched."""
COMMIT = re.compile(r"[0-9a-f]{40}")
_NAME = re.compile(rf"{HUB}/{{0,2}}([\w.-]+/[\w.-]+)(?:@(\S+))?", re.ASCII)
_SNAPSHOT = re.compile(
    r"(?:^|/)models--([^/]+?)--([^/]+)/snapshots/([0-9a-f]{40})(?:/(?:retriever|generator))?$"
)
"""A folder in huggingface_hub's cache, or that of a part of a bundle in it."""


class Name(NamedTuple):
    """A model, and a branch, a tag, a commit or a pull request (`refs/pr/1`) of it."""

    repo: str
    revision: str

    def __str__(self) -> str:
        return f"{HUB}{self.repo}@{self.revision}"


def parse_name(path: Path) -> Name | None:
    """The model that stands in place of a folder; None for a folder. Raises ConfigError for what
    begins as a name and is none."""
    if not str(path).startswith(HUB):
        return None
    match = _NAME.fullmatch(str(path))
    if match is None:
        raise ConfigError(
            f"{path} names no model of the hub; expected {HUB}owner/name, or that and @revision."
        )
    return Name(match[1], match[2] or "main")


def shown(path: Path) -> str:
    """A path as records have it: of a folder that is the hub's, its name with the commit."""
    match = _SNAPSHOT.search(path.as_posix())
    return str(Name(f"{match[1]}/{match[2]}", match[3])) if match else str(path)


def title(path: Path) -> str:
    """What people call the model in a folder: the hub's name for it, else that of the folder."""
    match = _SNAPSHOT.search(path.as_posix())
    return match[2] if match else path.resolve().name
