"""The parts that bundles are made of: where they lie, and what each was trained on.

Weights of equal shapes fit each other whatever they were trained on. So training writes down,
beside what it makes, the hashes of what that stands on, and who joins parts compares:

    {"encoders": {...}}    beside towers: `encoders_identity`
    {"base": {...}}        beside an adapter: `hash_model` of its base
"""

import json
import logging
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from mmrag_batch.bundle import (
    MANIFEST,
    PROMPT_SETTINGS,
    RETRIEVER_SPEC,
    BundleManifest,
    RetrieverSpec,
    encoders_key,
    hash_each,
    hash_files,
    read_manifest,
    read_retriever_spec,
)
from mmrag_batch.errors import ConfigError, MissingError
from mmrag_batch.hub.names import shown
from mmrag_batch.settings import DEMO_BUNDLE

ORIGIN = "origin.json"
DEMO = Path("demo")
"""What a config calls the bundle in the package."""

log = logging.getLogger(__name__)


def find_part(path: Path, part: Literal["retriever", "generator"]) -> Path:
    """The folder of a part that a config names: the path itself, that part of a bundle where the
    path is one, or of the demo bundle for `demo`. What is on the hub is fetched."""
    from mmrag_batch.hub.fetch import fetch_part

    bundle = DEMO_BUNDLE if path == DEMO and not path.exists() else fetch_part(path, part)
    return bundle / part if (bundle / MANIFEST).is_file() else bundle


def find_manifest(part: Path) -> BundleManifest | None:
    """The manifest of the bundle that the folder of a part lies in, if it does."""
    return read_manifest(part.parent) if (part.parent / MANIFEST).is_file() else None


def read_spec(retriever: Path) -> RetrieverSpec:
    """The spec of a retriever's graphs, in a bundle or not yet. Raises MissingError for none."""
    manifest = find_manifest(retriever)
    if manifest is None or (retriever / RETRIEVER_SPEC).is_file():
        return read_retriever_spec(retriever)
    if manifest.retriever is None:
        raise MissingError(
            f"{retriever.parent} is a bundle without a retriever. Name other encoders: what "
            "`mmrag-batch export encoders` takes."
        )
    return manifest.retriever


def encoders_identity(retriever: Path, spec: RetrieverSpec) -> dict[str, str]:
    """What encoders are: their weights, where their spec says so, and their graphs."""
    graphs = encoders_key(spec, hash_files(retriever))
    return {"path": shown(retriever), "weights": spec.weights, "graphs": graphs}


def hash_model(directory: Path) -> dict[str, str]:
    """The hashes of all files that make a checkpoint what it is, by name."""
    patterns = ("*.safetensors", "*.json", "*.jinja")
    files = sorted(file for pattern in patterns for file in directory.glob(pattern))
    files = [file for file in files if file.name not in (ORIGIN, PROMPT_SETTINGS)]
    digests = hash_each(files, f"Hashing {directory}")
    return {file.name: digest for file, digest in zip(files, digests)}


def write_origin(directory: Path, **parts: Mapping[str, Any]) -> None:
    """Write what the part in `directory` was trained on."""
    text = json.dumps(parts, indent=2, ensure_ascii=False) + "\n"
    (directory / ORIGIN).write_text(text, encoding="utf-8")


def read_origin(directory: Path, part: str) -> dict[str, Any] | None:
    """What the part in `directory` was trained on; None, with a warning, where nothing says so."""
    file = directory / ORIGIN
    known = json.loads(file.read_text(encoding="utf-8")).get(part) if file.is_file() else None
    if known is None:
        log.warning(
            "%s does not say which %s it was trained on, so only shapes are compared. With another "
            "one, what comes out is worthless.",
            directory,
            part,
        )
    return known


def check_encoders(towers: Path, retriever: Path, spec: RetrieverSpec) -> None:
    """Raise ConfigError for towers that were trained on other encoders than those of `retriever`.

    Equal weights will do in any precision; graphs of which no weights are known must be the same.
    """
    trained_on = read_origin(towers, "encoders")
    if trained_on is None:
        return
    if trained_on["weights"] and spec.weights:
        same = trained_on["weights"] == spec.weights
    else:
        same = trained_on["graphs"] == encoders_identity(retriever, spec)["graphs"]
    if not same:
        raise ConfigError(
            f"{towers} were trained on other encoders (those of {trained_on['path']}) than "
            f"{spec.encoder} here, and would find nothing. Export with `encoders: "
            f"{trained_on['path']}`, or train towers on these: `mmrag-batch train retriever "
            "CONFIG`."
        )


def check_base(adapter: Path, base: Path) -> None:
    """Raise ConfigError for an adapter that was trained on another base, naming what differs."""
    trained_on = read_origin(adapter, "base")
    if trained_on is None:
        return
    hashes = hash_model(base)
    known: Mapping[str, str] = trained_on["files"]
    differing = [name for name in sorted({*known, *hashes}) if known.get(name) != hashes.get(name)]
    if differing:
        raise ConfigError(
            f"{adapter} was trained on another base than {base}: {', '.join(differing[:3])} "
            f"{'differs' if len(differing) == 1 else 'differ'} ({len(differing)} of "
            f"{len(known)} files). Merge it into that base, which was {trained_on['path']} "
            f"(--base, or `base:` of the config); if only files were rewritten and you know that "
            f"it is the same model, rm {shlex.quote(str(adapter / ORIGIN))}"
        )
