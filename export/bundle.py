"""Trained parts -> a bundle: the one directory that `predict` needs."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmrag_batch.bundle import (
    MANIFEST,
    PROMPT_FIELDS,
    RETRIEVER_SPEC,
    BundleManifest,
    GeneratorSpec,
    hash_files,
    read_prompt_settings,
    read_retriever_spec,
    write_manifest,
    write_retriever_spec,
)
from mmrag_batch.declare import HUB
from mmrag_batch.errors import ConfigError
from mmrag_batch.export.card import licence_of
from mmrag_batch.export.dry_run import Step, is_exported, plan_export
from mmrag_batch.export.merge import copy_generator, merge_adapter
from mmrag_batch.export.onnx_retriever import export_encoders, export_towers
from mmrag_batch.export.parity import PARITY
from mmrag_batch.export.sample import read_sample
from mmrag_batch.export.settings import ExportConfig
from mmrag_batch.export.staging import check_out, staged
from mmrag_batch.hub.fetch import fetch_part
from mmrag_batch.hub.names import shown
from mmrag_batch.parts import check_base, check_encoders, find_part, read_spec


def plan_bundle(config: ExportConfig, *, overwrite: bool = False) -> list[Step]:
    """The steps that `write_bundle` takes, in order; raises what can be raised before the first."""
    check_out(config.out, overwrite=overwrite, marker=MANIFEST, kind="bundle")
    config = with_parts(config)
    steps = plan_export(
        encoders=config.encoders,
        precision=config.precision,
        towers=config.towers,
        base=config.base,
        adapter=config.adapter,
        out=config.out,
        vocabulary=config.vocabulary,
    )
    if config.sample is not None:
        read_sample(config.sample)
    generator_spec(config)
    if is_exported(config.encoders):
        check_encoders(config.towers, config.encoders, read_spec(config.encoders))
    if config.adapter is not None:
        check_base(config.adapter, config.base)
    return steps


def with_parts(config: ExportConfig) -> ExportConfig:
    """The config with the folders of the parts that it names of a bundle."""
    return replace(
        config,
        encoders=find_part(config.encoders, "retriever"),
        towers=fetch_part(config.towers, "towers"),
        base=find_part(config.base, "generator"),
        adapter=config.adapter and fetch_part(config.adapter, "adapter"),
    )


def write_bundle(config: ExportConfig, *, overwrite: bool = False) -> BundleManifest:
    """Export the retriever, merge the generator and put both into a new bundle at `config.out`.

    The bundle is made in a directory beside `out`, its manifest last, and renamed into place, so
    `out` is there only when it is whole. Raises OutputError if `out` exists and is not to be, or
    cannot be, overwritten, and what the exports raise for parts out of tolerance.
    """
    plan_bundle(config, overwrite=overwrite)
    config = with_parts(config)
    with staged(config.out) as staging:
        retriever = staging / "retriever"
        retriever.mkdir()
        parity = {
            **put_encoders(config, retriever),
            **export_towers(config.towers, retriever),
        }
        parity |= put_generator(config, staging / "generator")
        spec = read_retriever_spec(retriever)
        (retriever / RETRIEVER_SPEC).unlink()  # the manifest holds it from here on
        manifest = BundleManifest(
            retriever=spec,
            generator=generator_spec(config),
            files=hash_files(staging),
            parity=parity,
            trained_on=config.trained_on,
            notice=config.notice,
            sources=sources_of(config),
        )
        write_manifest(staging, manifest)
    return manifest


def sources_of(config: ExportConfig) -> dict[str, str]:
    """Which parts are the hub's, each by its name with the commit."""
    parts = {
        "encoders": config.encoders,
        "towers": config.towers,
        "generator": config.base,
        "adapter": config.adapter,
    }
    named = {part: shown(path) for part, path in parts.items() if path is not None}
    return {part: name for part, name in named.items() if name.startswith(HUB)}


def generator_spec(config: ExportConfig) -> GeneratorSpec:
    """How the bundle asks its generator: as it was tuned to be asked.

    Raises ConfigError where neither what was tuned nor the config says so, or they differ.
    """
    source = config.adapter or config.base
    tuned = read_prompt_settings(source)
    values: dict[str, Any] = {}
    problems: list[str] = []
    for name in PROMPT_FIELDS:
        given, known = getattr(config, name), tuned.get(name)
        values[name] = known if given is None else given
        if values[name] is None:
            problems.append(f"{name} is missing: {source} does not say how it was tuned. Add it.")
        elif known not in (None, values[name]):
            problems.append(
                f"{name} is {given}, and {source} was tuned with {known}. Leave it out."
            )
    if problems:
        raise ConfigError("\n".join(problems))
    return GeneratorSpec(licence=config.licence or licence_of(config.base), **values)


def put_generator(config: ExportConfig, generator: Path) -> dict[str, float]:
    """Merge the adapter into its base, or copy a base without one. Returns what was measured."""
    if config.adapter is None:
        copy_generator(config.base, generator)
        return {}
    merged = merge_adapter(config.base, config.adapter, generator, licence=config.licence)
    return {} if merged.logits is None else {"merged_logits": merged.logits}


def put_encoders(config: ExportConfig, retriever: Path) -> dict[str, float]:
    """Export encoders into `retriever`, or copy graphs that `export encoders` wrote.

    Returns their parity: measured here, or when the graphs were exported.
    """
    if not is_exported(config.encoders):
        figures = export_encoders(
            config.encoders,
            retriever,
            precision=config.precision,
            sample=config.sample,
            vocabulary=config.vocabulary,
        )
    else:
        for file in config.encoders.iterdir():
            if file.is_file():
                shutil.copyfile(file, retriever / file.name)
        write_retriever_spec(retriever, read_spec(config.encoders))
        if not (retriever / PARITY).is_file():
            return {}
        figures = json.loads((retriever / PARITY).read_text(encoding="utf-8"))
    (retriever / PARITY).unlink()  # the manifest holds it from here on
    return figures
