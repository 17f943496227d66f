"""What an answer depends on, and its key: the hash of that and of nothing else.

Where a run runs and how fast is not in it: shards, batch sizes, devices. Nor is where images are
found, nor any column that only passes through or is needed by evaluation alone.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict

from mmrag_batch.bundle import BundleManifest
from mmrag_batch.errors import InputError
from mmrag_batch.generation.engine import find_engine
from mmrag_batch.images.pixels import PIXELS_VERSION
from mmrag_batch.records import Found, Question
from mmrag_batch.retrieval.candidates import digest_files
from mmrag_batch.stages import ImageStore

KEY_BYTES = 16
OWN = "the bundle's"
"""In place of an engine that runs the bundle's own generator, whichever it is."""
FREE_FORM_VERSION = 2
"""What is kept of an answer in free form: since 2, how probable it was. It is asked again where it
was kept without."""
CORPUS = "corpus"
"""The one of the settings that says which documents there were for all rows: it may change, as a
table may."""
AnswerSettings = Mapping[str, object]
"""Everything but the question that an answer depends on, as JSON has it."""


def answer_settings(bundle: BundleManifest, asked: Mapping[str, object]) -> dict[str, object]:
    """What every answer of a run depends on: the bundle, and the settings that change answers, as
    they were `asked` for; None stands for what the bundle says. Raises ConfigError for an engine
    that there is not."""
    parts = {name: asdict(bundle)[name] for name in ("files", "retriever", "generator")}
    text = json.dumps(parts, sort_keys=True)
    said = asdict(bundle.generator)
    settings = {name: said.get(name) if value is None else value for name, value in asked.items()}
    if settings["engine"] == "auto" or find_engine(str(settings["engine"])).runs_bundle:
        settings["engine"] = OWN
        settings.pop("model", None)
    return {
        "bundle": hashlib.sha256(text.encode()).hexdigest(),
        "prompt": bundle.template_version,
        "image_preprocessing": PIXELS_VERSION,
        **settings,
    }


def differences(
    before: AnswerSettings, now: AnswerSettings, *, may_change: Collection[str] = ()
) -> list[str]:
    """What is not as it was: each field, what it was and what it is; without those that
    `may_change`, where both have them."""
    fields = [*before, *(name for name in now if name not in before)]
    return [
        f"{name}: was {_short(before.get(name))}, is {_short(now.get(name))}"
        for name in fields
        if before.get(name) != now.get(name)
        if not (name in may_change and name in before and name in now)
    ]


def _short(value: object) -> str:
    text = "not set" if value is None else str(value)
    return text[:12] + "…" if len(text) == 64 else text


def key_maker(settings: AnswerSettings) -> Callable[[Question], bytes]:
    """A function that gives a question's key (KEY_BYTES bytes) under these settings."""
    secret = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).digest()
    encode = json.JSONEncoder(separators=(",", ":")).encode

    def key_of(question: Question) -> bytes:
        documents = [(item.id, item.text, item.image) for item in question.documents]
        how = question.choices or FREE_FORM_VERSION
        means = encode([question.text, question.image, how, documents])
        return hashlib.blake2b(means.encode(), key=secret, digest_size=KEY_BYTES).digest()

    return key_of


def found_key_maker(settings: AnswerSettings) -> Callable[[Question, Found], bytes]:
    """A function that gives the key under which an answer is found again by the evidence that a
    corpus had for its question, whatever else came or went there. It raises InputError where
    another version was searched than these settings name."""
    version = settings.get(CORPUS)
    key_of = key_maker({name: value for name, value in settings.items() if name != CORPUS})

    def key_of_found(question: Question, found: Found) -> bytes:
        if found.version != version:
            raise InputError(
                "The corpus was changed while the run began. Run the same command again: it asks "
                "the rows for which there is other evidence."
            )
        means = key_of(question) + found.digest.encode()
        return hashlib.blake2b(means, digest_size=KEY_BYTES).digest()

    return key_of_found


def digest_of(images: Mapping[str, str | None]) -> bytes:
    """One digest of the image files that a question names: SHA-256 by source, None where a file
    could not be read. Empty where there are none."""
    if not images:
        return b""
    text = json.dumps(sorted(images.items()))
    return hashlib.blake2b(text.encode(), digest_size=KEY_BYTES).digest()


def digest_images(question: Question, images: ImageStore) -> bytes:
    """The same of the files as they are now."""
    return digest_of(digest_files(question, images))
