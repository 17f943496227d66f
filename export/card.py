"""The model card of a merged generator: what it was made of and what was measured on it.

The front matter is what model hubs read.
"""

import json
from pathlib import Path
from typing import Any

import yaml

from mmrag_batch import __version__
from mmrag_batch.bundle import sha256
from mmrag_batch.export.adapter import WEIGHTS, Adapter
from mmrag_batch.export.verify import MergeReport
from mmrag_batch.hub.names import title

CARD = """\
---
{front_matter}---

# {base}, tuned to answer from evidence

A generator for mmrag-batch: `{base}` with a LoRA adapter merged into it. It answers questions from
retrieved evidence, asked in the prompts of mmrag-batch.

| | |
|---|---|
| base | `{base}` ({architecture}, {dtype}) |
| adapter | {targets} weights, rank {rank}, SHA-256 `{digest}` |
| licence | {licence} |
| made by | mmrag-batch {version} |

## What was checked

- {merged} weights differ from the base, all of them weights that the adapter aims at; the other
  {kept} tensors are the base's, byte for byte.
- Sampled rows of each merged weight equal W + B A scale to within {weights:.2f} rounding steps.
- {logits}

## Use

    mmrag-batch predict in.csv out.csv --bundle DIR

where DIR is the bundle that this generator is part of. It also loads in transformers
(`MllamaForConditionalGeneration`) like the model that it was made from. The terms of the base's
licence apply to it.
"""


def write_card(out: Path, base: Path, adapter: Adapter, report: MergeReport, licence: str) -> None:
    """Write `README.md` to a merged generator; an empty `licence` is read from the base's card."""
    config: dict[str, Any] = json.loads((base / "config.json").read_text(encoding="utf-8"))
    base_front_matter = _front_matter(base / "README.md")
    licence = licence or licence_of(base)
    name = title(Path(adapter.config.get("base_model_name_or_path") or base))
    ranks = sorted({update.rank for update in adapter.updates.values()})
    front_matter: dict[str, Any] = {
        "base_model": base_front_matter.get("base_model") or name,
        "base_model_relation": "finetune",
        "license": licence or "other",
        "pipeline_tag": "image-text-to-text",
        "library_name": "transformers",
    }
    logits = (
        f"Logits on a prompt with an image equal those of adapter and base to {report.logits:.1e}."
        if report.logits is not None
        else "Logits were not compared: the model did not fit into memory in float32."
    )
    text = CARD.format(
        front_matter=yaml.safe_dump(front_matter, sort_keys=False),
        base=name,
        architecture=config.get("architectures", ["unknown"])[0],
        dtype=config.get("dtype") or config.get("torch_dtype") or "float32",
        targets=len(adapter.updates),
        rank=", ".join(map(str, ranks)),
        digest=sha256(adapter.directory / WEIGHTS),
        licence=licence or "not named by the base: see where it comes from",
        version=__version__,
        merged=report.merged,
        kept=report.kept,
        weights=report.weights,
        logits=logits,
    )
    (out / "README.md").write_text(text, encoding="utf-8")


def licence_of(folder: Path) -> str:
    """The licence of a checkpoint: as its model card has it, or the file that has its terms; empty
    where it has neither."""
    card = _front_matter(folder / "README.md")
    files = sorted(file.name for file in folder.glob("LICENSE*"))
    named = card.get("license_name") or card.get("license")
    return str(named or (f"see {files[0]}" if files else ""))


def _front_matter(card: Path) -> dict[str, Any]:
    """The values between the first two lines of a model card that are `---`; none without them."""
    if not card.is_file():
        return {}
    opening, _, body = card.read_text(encoding="utf-8").partition("---\n")
    if opening.strip():
        return {}
    try:
        values = yaml.safe_load(body.partition("\n---")[0])
    except yaml.YAMLError:
        return {}
    return values if isinstance(values, dict) else {}
