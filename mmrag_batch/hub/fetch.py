"""A name of the hub -> a folder in huggingface_hub's own cache.

Weights that are no pickles are fetched, with what says how to use them, and nothing else. Training
and export do this where they are given a name; `predict` never does.
"""

import logging
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from huggingface_hub.hf_api import ModelInfo, RepoSibling
from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]
from tqdm import tqdm

from mmrag_batch.hub.failures import FAILURES, explain, no_room, no_weights, page, reason
from mmrag_batch.hub.names import COMMIT, Name, Part, parse_name, shown
from mmrag_batch.progress import Progress

COMPANIONS = ["*.json", "*.jinja", "*.txt", "tokenizer.model", "*README.md"]
TERMS = ["LICENSE*", "USE_POLICY*", "NOTICE*", "generator/LICENSE*"]
GRAPHS = ("image_encoder", "text_encoder", "question_tower", "document_tower", "retriever/*")
WEIGHTS: dict[Part, list[str]] = {
    "retriever": [
        "model*.safetensors",
        *(f"{graph}.onnx{end}" for graph in GRAPHS for end in ("", ".data")),
    ],
    "towers": ["model.safetensors"],
    "generator": ["model*.safetensors", "generator/*.safetensors"],
    "adapter": ["adapter_model.safetensors"],
}
"""By the beginning of the path: copies in other formats lie in folders or have other names."""

log = logging.getLogger(__name__)


def fetch_part(path: Path, part: Part) -> Path:
    """The folder that `path` names: itself, or a snapshot in the cache, with all of that part.

    What is missing is downloaded; without a network, what the cache has will do. Raises ConfigError
    for what is no name, DeniedError for a model that is closed to this user or of pickles,
    StorageError for a full disk, MissingError for what does not exist or cannot be had now.
    """
    name = parse_name(path)
    if name is None:
        return path
    if COMMIT.fullmatch(name.revision) and (known := _cached(name, part)):
        return known  # nothing can have changed, so nobody is asked
    try:
        _, missing = _ask(name, part)
    except FAILURES as error:
        return _without_network(name, part, error)
    try:
        with Progress(f"Fetching {name}", _check_room(name, missing), "B") as progress:
            folder = snapshot_download(
                name.repo,
                revision=name.revision,
                allow_patterns=_patterns(part),
                tqdm_class=_counter(progress),
            )
    except FAILURES as error:
        raise explain(name, error) from None
    return Path(folder)


def to_download(path: Path, part: Part) -> str | None:
    """What `fetch_part` would download, in a sentence; None where it would not. Raises the same."""
    name = parse_name(path)
    if name is None or (COMMIT.fullmatch(name.revision) and _cached(name, part)):
        return None
    try:
        info, missing = _ask(name, part)
    except FAILURES as error:
        _without_network(name, part, error)
        return None
    if not missing:
        return None
    card: Any = info.card_data or {}
    terms = f", once you have accepted its terms at {page(name)}" if info.gated else ""
    return (
        f"{name}: {len(missing)} files of {_size(_check_room(name, missing))} would be downloaded"
        f"{terms}; commit {info.sha}, licence "
        f"{card.get('license_name') or card.get('license') or 'not named'}."
    )


def _patterns(part: Part) -> list[str]:
    return [*COMPANIONS, *TERMS, *WEIGHTS[part]]


def _cached(name: Name, part: Part) -> Path | None:
    """The snapshot in the cache, if it has all of the part."""
    try:
        folder = snapshot_download(
            name.repo,
            revision=name.revision,
            allow_patterns=_patterns(part),
            local_files_only=True,
        )
    except LocalEntryNotFoundError:
        return None
    return Path(folder)


def _ask(name: Name, part: Part) -> tuple[ModelInfo, list[RepoSibling]]:
    """What the hub says of a model, and which of its files the cache lacks. Raises DeniedError or
    MissingError for a model without weights of that part."""
    info = HfApi().model_info(
        name.repo,
        revision=name.revision,
        files_metadata=True,
        timeout=constants.HF_HUB_ETAG_TIMEOUT,
    )
    files = {one.rfilename: one for one in info.siblings or []}
    if not any(filter_repo_objects(files, allow_patterns=WEIGHTS[part])):
        raise no_weights(name, WEIGHTS[part][0], list(files))
    wanted = filter_repo_objects(files, allow_patterns=_patterns(part))
    return info, [
        files[file]
        for file in wanted
        if not isinstance(try_to_load_from_cache(name.repo, file, revision=info.sha), str)
    ]


def _without_network(name: Name, part: Part, error: Exception) -> Path:
    """The snapshot in the cache; raises what is wrong where it has none."""
    folder = None if isinstance(error, HFValidationError) else _cached(name, part)
    if folder is None:
        raise explain(name, error) from None
    log.info("%s: %s is taken from the cache, as %s.", name, shown(folder), reason(error))
    return folder


def _check_room(name: Name, missing: list[RepoSibling]) -> int:
    """The bytes of what is missing. Raises StorageError where the cache has no room for them."""
    needed = sum(one.size or 0 for one in missing)
    cache = Path(constants.HF_HUB_CACHE).absolute()
    free = shutil.disk_usage(next(one for one in (cache, *cache.parents) if one.exists())).free
    if free < needed:
        raise no_room(name, f"has {_size(free)} free, and {_size(needed)} are needed")
    return needed


def _counter(progress: Progress) -> type[Any]:
    """A bar for huggingface_hub to move, which is not seen: `progress` tells of its bytes."""

    class Counter(tqdm):  # type: ignore[type-arg]
        """Of bytes there are two: one for what comes over the network, one for what is written."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs | {"disable": True})
            self.bytes = 0 if kwargs.get("unit") == "B" else None

        def update(self, n: float | None = 1) -> None:
            if self.bytes is not None:
                self.bytes += int(n or 0)
                progress.advance(max(0, self.bytes - progress.done))

    return Counter


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
