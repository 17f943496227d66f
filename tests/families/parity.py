"""Ask both engines about checkpoints, in one process: python -m tests.families.parity FOLDER...

Writes a JSON object a folder. PYTHONPATH names the double of torchvision for families that import
it.
"""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

from mmrag_batch.bundle import hash_files, open_bundle, read_manifest, write_manifest
from mmrag_batch.families.family import template_version
from mmrag_batch.parity import compare_engines
from mmrag_batch.settings import DEMO_BUNDLE, PredictSettings


def as_bundle(folder: Path) -> Path:
    """Make a bundle of a folder with a `generator`; its retriever is never opened."""
    manifest = read_manifest(DEMO_BUNDLE)
    manifest = replace(
        manifest,
        generator=replace(manifest.generator, max_images=3, max_prompt_tokens=2048),
        template_version=template_version(folder / "generator"),
        files=hash_files(folder),
    )
    write_manifest(folder, manifest)
    return folder


def main(folders: list[str]) -> None:
    for folder in map(Path, folders):
        settings = PredictSettings(folder, folder, dtype="float32", engine_rows=4, kv_cache_gib=1)
        parity = compare_engines(open_bundle(as_bundle(folder)), settings)
        sys.stdout.write(json.dumps({"family": folder.name, **asdict(parity)}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
