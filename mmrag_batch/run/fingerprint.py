"""What an answer depends on: all of it must be the same when a run goes on.

Where a run runs and how fast is not in it: shards, batch sizes, devices. Nor is where images are
found, so that `--retry-errors` can look for them elsewhere.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict

from mmrag_batch.bundle import Manifest
from mmrag_batch.io.pixels import PIXELS_VERSION
from mmrag_batch.prompt import TEMPLATE_VERSION

SERVED_ELSEWHERE = ("openai", "scripted")
"""Engines whose answers are not those of the bundle's generator."""


def take_fingerprint(
    input_sha256: str,
    bundle: Manifest,
    *,
    engine: str,
    limit: int | None,
    top_k: int | None,
    max_images: int | None,
    max_new_tokens: int,
) -> dict[str, object]:
    """The fingerprint of a run; None stands for what the bundle says."""
    spec = bundle.generator
    parts = {name: asdict(bundle)[name] for name in ("files", "retriever", "generator")}
    text = json.dumps(parts, sort_keys=True)
    return {
        "input": input_sha256,
        "bundle": hashlib.sha256(text.encode()).hexdigest(),
        "engine": engine if engine in SERVED_ELSEWHERE else "the bundle's",
        "prompt": TEMPLATE_VERSION,
        "image_preprocessing": PIXELS_VERSION,
        "limit": limit,
        "top_k": spec.top_k if top_k is None else top_k,
        "max_images": spec.max_images if max_images is None else max_images,
        "max_new_tokens": max_new_tokens,
    }


def differences(before: Mapping[str, object], now: Mapping[str, object]) -> dict[str, str]:
    """What is not as it was, by field: what it was and what it is."""
    fields = [*before, *(name for name in now if name not in before)]
    return {
        name: f"{name}: was {_short(before.get(name))}, is {_short(now.get(name))}"
        for name in fields
        if before.get(name) != now.get(name)
    }


def _short(value: object) -> str:
    text = "not set" if value is None else str(value)
    return text[:12] + "…" if len(text) == 64 else text
