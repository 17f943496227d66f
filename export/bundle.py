"""Trained parts -> a bundle: the one directory that `predict` needs."""

import shutil
from pathlib import Path

from export.merge import merge_adapter
from export.onnx_retriever import export_encoders, export_towers
from mmrag_batch.bundle import (
    MANIFEST,
    RETRIEVER_SPEC,
    GeneratorSpec,
    Manifest,
    hash_files,
    read_retriever_spec,
    write_manifest,
)
from mmrag_batch.errors import OutputError


def write_bundle(
    encoders_dir: Path,
    towers_dir: Path,
    base_dir: Path,
    adapter_dir: Path,
    out: Path,
    *,
    generator: GeneratorSpec,
    trained_on: str,
    notice: str = "",
    overwrite: bool = False,
) -> Manifest:
    """Export the retriever, merge the generator and put both into a new bundle at `out`.

    The bundle is made in a directory beside `out`, its manifest last, and renamed into place, so
    `out` is there only when it is whole. Raises OutputError if `out` exists and is not to be, or
    cannot be, overwritten, and what the exports raise for parts out of tolerance.
    """
    _check_out(out, overwrite=overwrite)
    staging = out.with_name(f".{out.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)  # of a run that was killed
    staging.mkdir(parents=True)
    try:
        retriever = staging / "retriever"
        retriever.mkdir()
        parity = {
            **export_encoders(encoders_dir, retriever),
            **export_towers(towers_dir, retriever),
            "merged_logits": merge_adapter(base_dir, adapter_dir, staging / "generator"),
        }
        spec = read_retriever_spec(retriever)
        (retriever / RETRIEVER_SPEC).unlink()  # the manifest holds it from here on
        manifest = Manifest(
            retriever=spec,
            generator=generator,
            files=hash_files(staging),
            parity=parity,
            trained_on=trained_on,
            notice=notice,
        )
        write_manifest(staging, manifest)
        _move_into_place(staging, out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return manifest


def _check_out(out: Path, *, overwrite: bool) -> None:
    if not out.exists():
        return
    if not overwrite:
        raise OutputError(f"{out} exists; choose another directory or add --overwrite.")
    if not (out / MANIFEST).is_file():
        raise OutputError(f"{out} exists and is no bundle, so it is not overwritten; move it away.")


def _move_into_place(staging: Path, out: Path) -> None:
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    staging.rename(out)
    shutil.rmtree(old, ignore_errors=True)
