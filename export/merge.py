"""A LoRA adapter merged into its base, shard by shard: a checkpoint that any engine serves.

Each shard is copied as a file, then the rows of the weights that the adapter aims at are replaced
in the copy, a block at a time. So memory holds the adapter and one block, however large the model;
what is not aimed at cannot change, and what is written is read again and compared with its base.
"""

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mmrag_batch.errors import ConfigError, MissingError
from mmrag_batch.export import processors
from mmrag_batch.export.adapter import Adapter, Update, check_fits, first_names, read_adapter
from mmrag_batch.export.card import write_card
from mmrag_batch.export.checkpoint import (
    INDEX,
    Tensor,
    check_unquantised,
    read_json,
    read_rows,
    read_shard,
    shard_files,
    write_rows,
)
from mmrag_batch.export.linking import link_or_copy
from mmrag_batch.export.staging import check_out, check_space, staged
from mmrag_batch.export.verify import (
    MergeReport,
    changed_tensors,
    check_changes,
    check_logits,
    check_samples,
)
from mmrag_batch.families.family import check_tested, open_family
from mmrag_batch.generation.rendering import Renderer, chat_template
from mmrag_batch.generation.template import TEMPLATE
from mmrag_batch.parts import check_base
from mmrag_batch.progress import Progress

log = logging.getLogger(__name__)
NEEDED = ("config.json", "tokenizer.json", "tokenizer_config.json")
PROCESSOR = (processors.FILE, processors.NESTED)
"""Of these one, as transformers of one version or another wrote it."""
COPIED = (
    "generation_config.json",
    "video_preprocessor_config.json",  # some are read with it or not at all
    "special_tokens_map.json",
    "added_tokens.json",
    INDEX,
)
TERMS = ("LICENSE*", "USE_POLICY*", "NOTICE*")


@dataclass(frozen=True, slots=True)
class Plan:
    """What merging will do: the shards, their tensors, and the update of some of them by name."""

    base: Path
    adapter: Adapter
    shards: Mapping[Path, Sequence[Tensor]]
    updates: Mapping[str, Update]

    @property
    def size(self) -> int:
        """Bytes of the merged shards, which are those of the base."""
        return sum(file.stat().st_size for file in self.shards)


def write_generator(
    base: Path, adapter_dir: Path, out: Path, *, logits: bool = False, overwrite: bool = False
) -> MergeReport:
    """Merge into `out`, which is there only when it is whole and checked.

    Raises OutputError where `out` exists and is not to be, or cannot be, overwritten, or its disk
    is too small, and what `check_tested`, `check_base` and `merge_adapter` raise.
    """
    check_tested(base)
    check_out(out, overwrite=overwrite, marker="config.json", kind="checkpoint")
    check_space(out, plan_merge(base, adapter_dir).size)
    check_base(adapter_dir, base)
    with staged(out) as staging:
        return merge_adapter(base, adapter_dir, staging, logits=logits)


def plan_merge(base: Path, adapter_dir: Path) -> Plan:
    """Read what there is, without its weights, and check that one fits the other.

    Raises MissingError for files that are not there, DeniedError for pickles, ConfigError for a
    quantised base and for an adapter that is no plain LoRA, changes nothing, or is of another base.
    """
    shards = read_base(base)
    family = open_family(base)
    adapter = read_adapter(adapter_dir, family.module_name)
    tensors = {family.module_name(t.name): t for shard in shards.values() for t in shard}
    check_fits(adapter, base, tensors)
    updates = {tensors[name].name: update for name, update in adapter.updates.items()}
    return Plan(base, adapter, shards, updates)


def copy_generator(base: Path, out: Path) -> None:
    """Put a checkpoint into the directory `out` as it is, its weights as links where the disk has
    them. Raises as `read_base` and `link_or_copy` do."""
    shards = read_base(base)
    out.mkdir(parents=True, exist_ok=True)
    _copy_companions(base, out)
    link_or_copy(shards, out)


def read_base(base: Path) -> dict[Path, list[Tensor]]:
    """The shards of a checkpoint that adapters can be merged into, and their tensors. Raises as
    `plan_merge` does for a base."""
    for name in NEEDED:
        if not (base / name).is_file():
            raise MissingError(f"{base / name} is missing; a generator needs it.")
    if not any((base / name).is_file() for name in PROCESSOR):
        raise MissingError(f"{base} has no {' or '.join(PROCESSOR)}; a generator needs one.")
    check_unquantised(base)
    return {file: read_shard(file) for file in shard_files(base)}


def merge_adapter(
    base: Path, adapter_dir: Path, out: Path, *, licence: str = "", logits: bool = False
) -> MergeReport:
    """Write base + adapter into the directory `out`, in the layout and dtype of the base.

    `logits` compares them even where that takes more memory than merging.

    What the adapter aims at and leaves as it was is logged. Raises what `plan_merge` raises before
    anything is written; ConfigError where rounding leaves nothing of the adapter; InternalError
    where what was written is not W + B A scale, or answers other than adapter + base.
    """
    plan = plan_merge(base, adapter_dir)
    _tell_others(base, adapter_dir)
    out.mkdir(parents=True, exist_ok=True)
    _copy_companions(base, out)
    with Progress("Merging", plan.size, "B") as progress:
        for file, tensors in plan.shards.items():
            _merge_shard(file, out / file.name, tensors, plan.updates)
            progress.advance(file.stat().st_size)
    with Progress(f"Comparing with {base}", plan.size, "B") as progress:
        changed_names = changed_tensors(plan.shards, out, progress.advance)
    lost = check_changes(changed_names, set(plan.updates))
    if unchanged := [*plan.adapter.untouched, *lost]:
        log.warning(
            "The adapter leaves %d of the %d weights that it aims at as they were: %s. It was not "
            "trained there, or not enough to outlast rounding.",
            len(unchanged),
            len(plan.adapter.untouched) + len(plan.updates),
            first_names(unchanged),
        )
    report = MergeReport(
        merged=len(changed_names),
        kept=sum(map(len, plan.shards.values())) - len(changed_names),
        weights=check_samples(plan.shards, out, plan.updates),
        logits=check_logits(base, plan.adapter, out, always=logits),
    )
    write_card(out, base, plan.adapter, report, licence)
    return report


def _tell_others(base: Path, adapter_dir: Path) -> None:
    """Warn of a tokenizer or a chat template beside an adapter that is not its base's: tools save
    them there, whether they were changed or not."""
    for what, read in (("tokenizer", _vocabulary), ("chat template", chat_template)):
        with suppress(MissingError):
            if read(adapter_dir) != read(base):
                log.warning(
                    "%s comes with a %s that is not that of %s, whose own is used. If it was tuned "
                    "with another, merge into a copy of the base that has it.",
                    adapter_dir,
                    what,
                    base,
                )


def _vocabulary(directory: Path) -> object:
    tokenizer = read_json(directory / "tokenizer.json")
    return tokenizer.get("model"), tokenizer.get("added_tokens")


def _copy_companions(base: Path, out: Path) -> None:
    """Everything of a generator that is no weight, with its terms of use."""
    for pattern in (*NEEDED, *PROCESSOR, *COPIED, *TERMS):
        for file in base.glob(pattern):
            shutil.copyfile(file, out / file.name)
    (out / TEMPLATE).write_text(chat_template(base), encoding="utf-8")
    _end_answers(out)


def _end_answers(out: Path) -> None:
    """Let generation end where the template ends an answer, if the checkpoint does not say so."""
    file = out / "generation_config.json"
    values = read_json(file) if file.is_file() else {}
    ends = values.get("eos_token_id")
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    if (end := Renderer(out).end_id) not in ends:
        values["eos_token_id"] = [*ends, end]
        file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _merge_shard(
    source: Path, target: Path, tensors: Sequence[Tensor], updates: Mapping[str, Update]
) -> None:
    shutil.copyfile(source, target)
    with target.open("r+b") as stream:
        for tensor in tensors:
            if tensor.name not in updates:
                continue
            update = updates[tensor.name]
            for start, stop in tensor.blocks():
                rows = read_rows(stream, tensor, start, stop)
                merged = (rows.float() + update.rows(start, stop)).to(rows.dtype)
                if not merged.isfinite().all():
                    raise ConfigError(
                        f"Merging {tensor.name} overflows {tensor.dtype}; was the adapter trained "
                        "in float16? Its weights or the base's are not finite."
                    )
                write_rows(stream, tensor, start, merged)
