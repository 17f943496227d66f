"""Bundles whose manifest lists the hashes of what is there, and what is there is broken inside."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmrag_batch.bundle import MANIFEST, hash_files
from mmrag_batch.settings import DEMO_BUNDLE

Change = Callable[[bytes], bytes]
DEEP = b"[" * 100_000


def misbuild(folder: Path, name: str, change: Change) -> Path:
    """The demo bundle with one file changed, and hashed as if that were right."""
    bundle = folder / "bundle"
    shutil.copytree(DEMO_BUNDLE, bundle)
    file = bundle / name
    file.write_bytes(change(file.read_bytes()))
    if name != MANIFEST:
        manifest = json.loads((bundle / MANIFEST).read_text())
        manifest["files"] = hash_files(bundle)
        (bundle / MANIFEST).write_text(json.dumps(manifest))
    return bundle


def put(*path: str, value: object) -> Change:
    """Has a value of JSON be another one."""

    def change(data: bytes) -> bytes:
        whole: Any = json.loads(data)
        inner = whole
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
        return json.dumps(whole).encode()

    return change


def be(data: bytes) -> Change:
    """Has a file hold something else."""
    return lambda _: data


def cut(data: bytes) -> bytes:
    """Half of a file."""
    return data[: len(data) // 2]


def tensors(rename: str = "", shape: list[int] | None = None, dtype: str = "") -> Change:
    """Has the header of safetensors lie about its first tensor, or name it otherwise."""

    def change(data: bytes) -> bytes:
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        name = next(name for name in sorted(header) if name != "__metadata__")
        entry = header.pop(name)
        entry |= {"shape": shape or entry["shape"], "dtype": dtype or entry["dtype"]}
        header[rename or name] = entry
        packed = json.dumps(header).encode()
        return struct.pack("<Q", len(packed)) + packed + data[8 + length :]

    return change
