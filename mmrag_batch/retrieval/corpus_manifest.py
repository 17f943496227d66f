"""What a corpus on disk is: its manifest, and which models it goes with.

    corpus.json         the models, the segments in order, the SHA-256 of each file: written last
    building.json       the same of an index that is being built: what is safe already
    <name>.vectors      float16 (N, D): the document tower's unit vectors, one after another
    <name>.rows         for each of them ROW: hashes of its id and its content, where its record is
    <name>.documents    the records, a JSON object a line
    <name>.dead         numbers (uint32) of rows that were changed or removed since
    <name>.faiss        an approximate index of some segments, where one was asked for
    embeddings/         an embedding store: another document tower needs no encoder

Files but the manifests are never written to again, so who has read a manifest has all that it names
for as long as it likes. A change of documents is more segments, and other files of dead rows.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from mmrag_batch.bundle import BundleManifest, encoders_key
from mmrag_batch.errors import ConfigError, MissingError
from mmrag_batch.remote import find_url
from mmrag_batch.specs import parse_spec

MANIFEST, BUILDING, EMBEDDINGS = "corpus.json", "building.json", "embeddings"
FORMAT = 1
RANGES = {"rows": (0, 2**40), "size": (1, 2**16), "probes": (1, 2**32), "recall": (0, 1)}


@dataclass(frozen=True, slots=True)
class Models:
    """What vectors depend on: hashes of the encoders and the document tower; `size` is D."""

    encoders: str
    tower: str
    size: int


@dataclass(frozen=True, slots=True)
class Segment:
    """Some documents. `files` maps the name of each of its files to its SHA-256; `dead` is the one
    that says which of its `rows` do not count, or empty."""

    name: str
    rows: int
    dead: str
    files: dict[str, str]


@dataclass(frozen=True, slots=True)
class Approximate:
    """An approximate index: the name of its file and its SHA-256; the names of the segments that it
    `covers`, in order, and their rows; how many of its lists are looked through, and the share of
    the nearest documents that was found when it was made."""

    name: str
    sha256: str
    covers: dict[str, int]
    probes: int
    recall: float


@dataclass(frozen=True, slots=True)
class CorpusManifest:
    """`corpus.json`. `version` is a hash of the documents, in whatever segments and order, of the
    models, and of an approximate index; `documents` is how many there are.
    `image_root` leads from the corpus to where its images are, as a relative path, or is a
    URL."""

    models: Models
    version: str
    documents: int
    image_root: str
    segments: tuple[Segment, ...]
    approximate: Approximate | None = None
    format: int = FORMAT

    def files(self) -> Iterator[tuple[str, str]]:
        """Every file, with its SHA-256."""
        for segment in self.segments:
            yield from segment.files.items()
        if self.approximate is not None:
            yield self.approximate.name, self.approximate.sha256


def models_of(bundle: BundleManifest) -> Models | None:
    """Those of a bundle; None where it has no retriever."""
    if bundle.retriever is None:
        return None
    start = "retriever/"
    files = {name.removeprefix(start): digest for name, digest in bundle.files.items()}
    tower = {name: digest for name, digest in files.items() if name.startswith("document_tower")}
    text = json.dumps(sorted(tower.items()))
    return Models(
        encoders_key(bundle.retriever, files),
        hashlib.sha256(text.encode()).hexdigest()[:32],
        bundle.retriever.embedding_size,
    )


def short_hash(text: str) -> bytes:
    """What a document's id, or all that it is, is known by: 16 bytes."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def read_corpus(directory: Path) -> CorpusManifest:
    """The manifest of a corpus. Raises MissingError where there is none, or it is not finished;
    ConfigError for one that cannot be read."""
    manifest = read_manifest(directory / MANIFEST)
    if manifest is None:
        begun = (directory / BUILDING).exists()
        state = "is not finished" if begun else f"is no corpus: it has no {MANIFEST}"
        how = "run the command that was to make it again" if begun else "make one"
        raise MissingError(f"{directory} {state}; {how}: `mmrag-batch index DOCS {directory}`.")
    return manifest


def find_image_root(directory: Path) -> Path:
    """Where the paths of a corpus' images begin. Raises what `read_corpus` does."""
    root = Path(read_corpus(directory).image_root)
    return root if find_url(root) else directory / root


def read_manifest(file: Path) -> CorpusManifest | None:
    """The manifest in a file; None where there is no file. Raises ConfigError."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{file} cannot be read: {error}. {_anew(file)}") from None
    try:
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise ValueError(f"it is not of format {FORMAT}")
        models = parse_spec(Models, values.get("models"), RANGES)
        segments = tuple(parse_spec(Segment, one, RANGES) for one in values.get("segments", ()))
        index = values.get("approximate")
        approximate = None if index is None else parse_spec(Approximate, index, RANGES)
        given = {"models": models, "segments": ()}
        manifest = parse_spec(_Head, values | given, RANGES)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{file} cannot be used: {error}. {_anew(file)}") from None
    head = (manifest.version, manifest.documents, manifest.image_root)
    return CorpusManifest(models, *head, segments, approximate)


@dataclass(frozen=True, slots=True)
class _Head:
    version: str
    documents: int
    image_root: str


def as_json(manifest: CorpusManifest) -> bytes:
    """The manifest as it is written."""
    return (json.dumps(asdict(manifest), indent=1) + "\n").encode()


def _anew(file: Path) -> str:
    return f"Remove it, then run `mmrag-batch index DOCS {file.parent}` again."
