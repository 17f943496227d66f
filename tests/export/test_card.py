from collections.abc import Callable
from pathlib import Path

import yaml

from mmrag_batch.export.adapter import read_adapter
from mmrag_batch.export.card import write_card
from mmrag_batch.export.verify import MergeReport
from mmrag_batch.families.mllama.family import Mllama

REPORT = MergeReport(merged=35, kept=82, weights=0.5, logits=None)


def card(base: Path, adapter: Path, out: Path, *, licence: str = "") -> tuple[dict[str, str], str]:
    """The front matter and the text of a model card."""
    out.mkdir(exist_ok=True)
    write_card(out, base, read_adapter(adapter, Mllama.module_name), REPORT, licence)
    _, front, text = (out / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), text


def test_a_card_says_what_was_merged_and_checked(
    sharded_base: Path, make_adapter: Callable[[float], Path], tmp_path: Path
) -> None:
    front, text = card(sharded_base, make_adapter(0.05), tmp_path / "out")
    assert front["license"] == "llama3.2"  # from the card of the base
    assert front["pipeline_tag"] == "image-text-to-text"
    assert "35 weights differ from the base" in text
    assert "the other 82 tensors" in " ".join(text.split())
    assert "Logits were not compared" in text
    assert "bfloat16" in text
    assert str(tmp_path) not in text


def test_a_licence_that_is_given_is_taken(
    tiny_generator_dir: Path, make_adapter: Callable[[float], Path], tmp_path: Path
) -> None:
    adapter = make_adapter(0.05)
    assert card(tiny_generator_dir, adapter, tmp_path / "out")[0]["license"] == "other"
    front, text = card(tiny_generator_dir, adapter, tmp_path / "out", licence="Apache-2.0")
    assert front["license"] == "Apache-2.0"
    assert "| licence | Apache-2.0 |" in text
