"""The bundle: the directory that `predict` needs and nothing else.

bundle.json       the manifest, written last: if it is there, the bundle is whole
retriever/        image_encoder.onnx  text_encoder.onnx  question_tower.onnx
                  document_tower.onnx  tokenizer.json
generator/        Hugging Face layout, safetensors only
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

from mmrag_batch import __version__
from mmrag_batch.errors import ConfigError, DeniedError, MissingError
from mmrag_batch.progress import Progress
from mmrag_batch.prompt import IMAGES_FIRST, TEMPLATE_VERSIONS, Scoring
from mmrag_batch.specs import parse_spec

FORMAT = 1
MANIFEST = "bundle.json"
RETRIEVER_SPEC = "retriever.json"
PROMPT_SETTINGS = "prompt.json"
"""Beside an adapter or a model that was tuned: how its prompts were made."""
PROMPT_FIELDS = ("scoring", "top_k", "max_images", "max_prompt_tokens")
PICKLES = frozenset({".bin", ".pt", ".pth", ".pt2", ".pkl", ".pickle", ".ckpt"})
BLOCK = 2**22  # bytes of a file that are read at once to be hashed
EMBEDDING_VERSION = 1  # raised when the same encoders are fed something else than before
Precision = Literal["fp32", "fp16", "int8"]
"""Of an encoder's weights: fp16 is for CUDA, int8 for CPUs with VNNI."""
Framing = Literal["torchvision", "transformers", "stretch"]
"""How a picture becomes a square: its short side resized and the centre cut out, which either
library rounds in its own way, or both sides resized."""
Resample = Literal["bicubic", "bilinear", "lanczos", "nearest", "box", "hamming"]

RANGES = {
    "embedding_size": (1, 2**16),
    "image_size": (1, 2**12),
    "image_std": (1e-6, 1e6),
    "context_length": (2, 2**16),
    "top_k": (0, 100),
    "max_images": (0, 100),
    "max_prompt_tokens": (1, 2**24),
}
"""Of what a manifest says; memory is made for it before a graph is asked."""


@dataclass(frozen=True, slots=True)
class RetrieverSpec:
    """How the graphs of `retriever/` are fed. Sizes in pixels, tokens and dimensions."""

    encoder: str
    """Which encoder this is, for people: `imagebind_huge`, `imagebind-demo`."""
    licence: str
    embedding_size: int
    image_size: int
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    context_length: int
    """Most text tokens, start and end token included."""
    temperature: float = 1.0
    """Learned factor on the cosine of a question and a document vector."""
    precision: Precision = "fp32"
    framing: Framing = "torchvision"
    resample: Resample = "bicubic"
    weights: str = ""
    """SHA-256 of the weights that the graphs compute with and of how they are fed, whatever the
    precision; empty in graphs of older versions."""
    pad_texts: bool = False
    """Whether every text is padded to `context_length`, as its tokenizer says. Otherwise texts are
    zero-padded to the longest of a batch, and attention is causal, so that this changes nothing."""
    clean_texts: bool = False
    """Whether texts are cleaned as CLIP's published code does, before its tokenizer sees them."""


@dataclass(frozen=True, slots=True)
class GeneratorSpec:
    """How the generator of this bundle is asked: as it was trained to be, if it was."""

    licence: str
    scoring: Scoring
    top_k: int
    max_images: int
    max_prompt_tokens: int


@dataclass(frozen=True, slots=True)
class BundleManifest:
    """`bundle.json`. `files` maps each file's path in the bundle to the SHA-256 of its bytes."""

    retriever: RetrieverSpec | None
    """None: there is no `retriever/`; it is a bundle for tables without documents."""
    generator: GeneratorSpec
    files: dict[str, str]
    parity: dict[str, float]
    trained_on: str
    notice: str = ""
    """Shown at the start of every run, for a bundle with limits its users must know."""
    sources: dict[str, str] = field(default_factory=dict)
    """The parts that were taken from the hub, each by its name there with the commit."""
    calibration: dict[str, float] = field(default_factory=dict)
    """What `mmrag-batch calibrate` found: see `run/calibrate.py`."""
    template_version: int = IMAGES_FIRST
    format: int = FORMAT
    created_by: str = field(default=f"mmrag-batch {__version__}")


@dataclass(frozen=True, slots=True)
class Bundle:
    """An opened bundle: every file is there and is what the manifest says."""

    path: Path
    manifest: BundleManifest

    @property
    def retriever_dir(self) -> Path:
        return self.path / "retriever"

    @property
    def generator_dir(self) -> Path:
        return self.path / "generator"


def open_bundle(path: Path, *, without: str = "") -> Bundle:
    """Read the manifest of a bundle and verify each file's hash; refuse what could run code. Files
    whose names match the pattern `without` need not be there, and are not read.

    Raises MissingError (no bundle, or a file of it is missing or damaged), ConfigError (a format or
    prompt template this version does not speak), DeniedError (a path that leaves the bundle, a
    pickle, a model that brings code of its own, or anything that the manifest does not list).
    """
    manifest = read_manifest(path)
    _refuse_strangers(path, manifest)
    names = [name for name in manifest.files if not fnmatch(name, without)]
    files = [path / name for name in names]
    for name, file in zip(names, files):
        if "\0" in name or not file.resolve().is_relative_to(path.resolve()):
            raise DeniedError(f"{path / MANIFEST}: {name!r} leaves the bundle; do not use it.")
        if not file.is_file():
            raise MissingError(f"{file} is missing from the bundle; export or copy it again.")
    digests = hash_each(files, f"Checking {path}")
    for name, file, digest in zip(names, files, digests):
        if digest != manifest.files[name]:
            raise MissingError(
                f"{file} differs from {MANIFEST} (truncated or edited?); export or copy it again."
            )
    return Bundle(path=path, manifest=manifest)


def _refuse_strangers(path: Path, manifest: BundleManifest) -> None:
    """Raise DeniedError for what is not listed, since what loads a model takes what lies there, and
    for what would run code when it is loaded, listed or not."""
    for file in sorted(path.rglob("*")):
        if file.is_dir() and not file.is_symlink():
            continue
        if file.suffix in PICKLES:
            raise DeniedError(f"{file} may hold a pickle; a bundle has safetensors and ONNX only.")
        if file.suffix == ".py":
            raise DeniedError(f"{file} is code; a bundle holds data only.")
        if str(file.relative_to(path)) not in (MANIFEST, *manifest.files):
            raise DeniedError(
                f"{file} is not listed in {MANIFEST}, and may change what the model does. Move it "
                "out of the bundle, or export again."
            )
        if file.match("*config.json") and file.is_file() and b'"auto_map"' in file.read_bytes():
            raise DeniedError(
                f"{file} asks for code of its own (auto_map), which `predict` never runs. Use a "
                "checkpoint of an architecture that the engine knows."
            )


def read_manifest(path: Path) -> BundleManifest:
    """The manifest of the bundle at `path`, without a look at its other files."""
    file = path / MANIFEST
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingError(
            f"{path} is no bundle: it has no {MANIFEST}. Make one with `mmrag-batch export`."
        ) from None
    except (ValueError, OSError, RecursionError) as error:
        raise MissingError(f"{file} cannot be read: {error}") from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        manifest_format = values.get("format") if isinstance(values, dict) else None
        raise ConfigError(
            f"{file} has format {manifest_format!r}; this version reads format {FORMAT}."
        )
    _check_template(values, f"{file} was trained", "Export it again.")
    try:
        said = values.get("retriever", {})
        retriever = None if said is None else parse_spec(RetrieverSpec, said, RANGES)
        generator = parse_spec(GeneratorSpec, values.get("generator"), RANGES)
        parts = {"retriever": retriever, "generator": generator}
        return parse_spec(BundleManifest, values | parts, RANGES)
    except ValueError as error:
        raise ConfigError(f"{file} lacks or has a wrong field: {error}. Export it again.") from None


def write_manifest(path: Path, manifest: BundleManifest) -> None:
    """Write `bundle.json`; call it last. Replaces an old one in one step."""
    _write_json(path / MANIFEST, asdict(manifest))


def hash_files(path: Path) -> dict[str, str]:
    """SHA-256 of every file below `path` but the manifest, by relative POSIX path, sorted."""
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.name != MANIFEST)
    digests = hash_each(files, f"Hashing {path}")
    return {file.relative_to(path).as_posix(): digest for file, digest in zip(files, digests)}


def hash_each(files: Sequence[Path], what: str) -> list[str]:
    """The SHA-256 of each file, several at a time: one core hashes half a gigabyte a second or so,
    and disks read faster. `what` names the step where it takes long."""
    size = sum(file.stat().st_size for file in files)
    threads = min(8, os.cpu_count() or 1)
    with Progress(what, size, "B") as progress, ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda file: sha256(file, progress.advance), files))


def read_retriever_spec(directory: Path) -> RetrieverSpec:
    """The spec beside the graphs of a retriever that is not (yet) part of a bundle."""
    file = directory / RETRIEVER_SPEC
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        return parse_spec(RetrieverSpec, values, RANGES)
    except FileNotFoundError:
        raise MissingError(
            f"{directory} holds no retriever: it has no {RETRIEVER_SPEC}. "
            "Make one with `mmrag-batch export encoders`."
        ) from None
    except ValueError as error:
        raise ConfigError(f"{file} cannot be read: {error}. Export it again.") from None


def write_retriever_spec(directory: Path, spec: RetrieverSpec) -> None:
    """Write `retriever.json` beside exported graphs."""
    _write_json(directory / RETRIEVER_SPEC, asdict(spec))


def write_prompt_settings(directory: Path, settings: Any, template_version: int) -> None:
    """Write how prompts were made when a generator was tuned: the PROMPT_FIELDS of `settings`."""
    values = {name: getattr(settings, name) for name in PROMPT_FIELDS}
    _write_json(directory / PROMPT_SETTINGS, {"template_version": template_version, **values})


def read_prompt_settings(directory: Path) -> dict[str, Any]:
    """How prompts were made when the generator in `directory` was tuned; empty where nothing says
    so. Raises ConfigError for a template that this version does not write."""
    file = directory / PROMPT_SETTINGS
    if not file.is_file():
        return {}
    values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    _check_template(values, f"{directory} was tuned", "Tune it again.")
    return values


def _check_template(values: Mapping[str, object], what: str, again: str) -> None:
    if (version := values.get("template_version")) not in TEMPLATE_VERSIONS:
        raise ConfigError(
            f"{what} with prompt template {version}; this version writes {TEMPLATE_VERSIONS}. "
            f"{again}"
        )


def encoders_key(spec: RetrieverSpec, files: Mapping[str, str]) -> str:
    """What embeddings depend on but for what is embedded: the name of their folder in a cache.

    `files` maps the names in a retriever directory to their SHA-256, as in a manifest.
    """
    digests = {
        name: digest
        for name, digest in files.items()
        if name.startswith(("image_encoder", "text_encoder", "tokenizer"))
    }
    said = asdict(replace(spec, temperature=1.0))
    del said["weights"]  # the files say it
    payload = [EMBEDDING_VERSION, sorted(digests.items()), said]
    return hashlib.sha256(json.dumps(payload).encode()).hexdigest()[:32]


def sha256(file: Path, read: Callable[[int], None] | None = None) -> str:
    """SHA-256 (hex) of a file's bytes; `read` is told how many, block by block."""
    digest = hashlib.sha256()
    with file.open("rb", buffering=0) as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
            if read is not None:
                read(len(block))
    return digest.hexdigest()


def _write_json(file: Path, values: dict[str, Any]) -> None:
    temporary = file.with_name(file.name + ".partial")
    temporary.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(file)
