"""Models, trained here or not -> a bundle: the one directory that `predict` needs."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

from mmrag_batch.bundle import (
    MANIFEST,
    RETRIEVER_SPEC,
    BundleManifest,
    RetrieverSpec,
    hash_files,
    read_retriever_spec,
    write_manifest,
    write_retriever_spec,
)
from mmrag_batch.declare import HUB
from mmrag_batch.export.defaults import describe
from mmrag_batch.export.dry_run import Step, has_towers, is_exported, plan_export
from mmrag_batch.export.merge import copy_generator, merge_adapter
from mmrag_batch.export.onnx_retriever import export_encoders, export_towers
from mmrag_batch.export.parity import PARITY
from mmrag_batch.export.sample import read_sample
from mmrag_batch.export.settings import ExportConfig
from mmrag_batch.export.staging import check_out, staged
from mmrag_batch.families.family import check_tested
from mmrag_batch.hub.fetch import fetch_part
from mmrag_batch.hub.names import shown
from mmrag_batch.parts import check_base, check_encoders, find_manifest, find_part, read_spec

MERGED = "merged_logits"
"""The one figure of a manifest that is the generator's."""
log = logging.getLogger(__name__)


def plan_bundle(config: ExportConfig, *, overwrite: bool = False) -> list[Step]:
    """The steps that `write_bundle` takes, in order, once it is logged what is taken by default;
    raises what can be raised before the first."""
    check_out(config.out, overwrite=overwrite, marker=MANIFEST, kind="bundle")
    config = with_parts(config)
    steps = plan_export(config)
    if config.sample is not None:
        read_sample(config.sample)
    defaults = describe(config).defaults
    if config.encoders and config.towers and is_exported(config.encoders):
        check_encoders(config.towers, config.encoders, read_spec(config.encoders))
    if config.adapter is not None:
        check_base(config.adapter, config.generator)
    if defaults:
        values = ", ".join(f"{name} {value}" for name, value in defaults.items())
        log.info("By default: %s. Flags, or lines of a config, of these names change it.", values)
    return steps


def with_parts(config: ExportConfig) -> ExportConfig:
    """The config with the folders of the parts that it names of a bundle."""
    generator = find_part(config.generator, "generator")
    check_tested(generator, untested=config.untested)
    return replace(
        config,
        encoders=config.encoders and find_part(config.encoders, "retriever"),
        towers=config.towers and fetch_part(config.towers, "towers"),
        generator=generator,
        adapter=config.adapter and fetch_part(config.adapter, "adapter"),
    )


def write_bundle(config: ExportConfig, *, overwrite: bool = False) -> BundleManifest:
    """Export the retriever, if there is one, put the generator beside it, with its adapter merged,
    and make both a new bundle at `config.out`.

    The bundle is made in a directory beside `out`, its manifest last, and renamed into place, so
    `out` is there only when it is whole. Raises OutputError if `out` exists and is not to be, or
    cannot be, overwritten, and what the exports raise for parts out of tolerance.
    """
    check_out(config.out, overwrite=overwrite, marker=MANIFEST, kind="bundle")
    config = with_parts(config)  # once: what the hub has may change between two looks
    plan_bundle(config, overwrite=overwrite)
    said = describe(config)
    with staged(config.out) as staging:
        spec, parity = put_retriever(config, staging / "retriever")
        parity |= put_generator(config, staging / "generator", said.generator.licence)
        manifest = BundleManifest(
            retriever=spec,
            generator=said.generator,
            files=hash_files(staging),
            parity=parity,
            trained_on=said.trained_on,
            notice=said.notice,
            template_version=said.template_version,
            sources=sources_of(config),
        )
        write_manifest(staging, manifest)
    return manifest


def sources_of(config: ExportConfig) -> dict[str, str]:
    """Which parts are the hub's, each by its name with the commit."""
    parts = {
        "encoders": config.encoders,
        "towers": config.towers,
        "generator": config.generator,
        "adapter": config.adapter,
    }
    named = {part: shown(path) for part, path in parts.items() if path is not None}
    return {part: name for part, name in named.items() if name.startswith(HUB)}


def put_generator(config: ExportConfig, generator: Path, licence: str) -> dict[str, float]:
    """Merge the adapter into its base, or link a generator without one. Returns what was
    measured."""
    if config.adapter is None:
        copy_generator(config.generator, generator)
        return {}
    merged = merge_adapter(config.generator, config.adapter, generator, licence=licence)
    return {} if merged.logits is None else {MERGED: merged.logits}


def put_retriever(
    config: ExportConfig, retriever: Path
) -> tuple[RetrieverSpec | None, dict[str, float]]:
    """Write the encoders and the towers to `retriever`, where the config names encoders. Returns
    their spec, for the manifest, and what was measured."""
    if config.encoders is None:
        return None, {}
    retriever.mkdir()
    parity = put_encoders(config, config.encoders, retriever)
    if config.towers is not None or not has_towers(retriever):
        parity |= export_towers(config.towers, retriever)
    spec = read_retriever_spec(retriever)
    (retriever / RETRIEVER_SPEC).unlink()  # the manifest holds it from here on
    return spec, parity


def put_encoders(config: ExportConfig, encoders: Path, retriever: Path) -> dict[str, float]:
    """Export encoders into `retriever`, or copy graphs that `export encoders` wrote, with the
    towers that lie beside them.

    Returns their parity: measured here, or when the graphs were exported.
    """
    if not is_exported(encoders):
        figures = export_encoders(
            encoders,
            retriever,
            precision=config.precision,
            sample=config.sample,
            vocabulary=config.vocabulary,
        )
    else:
        for file in encoders.iterdir():
            if file.is_file():
                shutil.copyfile(file, retriever / file.name)
        write_retriever_spec(retriever, read_spec(encoders))
        if not (retriever / PARITY).is_file():
            manifest = find_manifest(encoders)
            measured = {} if manifest is None else manifest.parity
            return {name: value for name, value in measured.items() if name != MERGED}
        figures = json.loads((retriever / PARITY).read_text(encoding="utf-8"))
    (retriever / PARITY).unlink()  # the manifest holds it from here on
    return figures
