"""The scripts that only a GPU answers: as much of them as needs none."""

from importlib.util import find_spec
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from benchmarks.gpu import all as gpu
from benchmarks.gpu.world import SPECIAL, widened
from mmrag_batch.settings import DEMO_BUNDLE


def test_every_step_is_a_script_within_a_limit(tmp_path: Path) -> None:
    steps = [step for group in gpu.steps(tmp_path, tmp_path / "graph") for step in group]
    assert {step.name for step in steps} >= {"parity", "serving", "training", "qlora", "encoders"}
    for step in steps:
        assert find_spec(step.arguments[0])
        assert step.limit <= 300


def test_a_step_that_fails_or_hangs_leaves_what_it_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = gpu.Report(tmp_path)
    report.run(gpu.Step("parity", 60, ("json.tool", str(tmp_path / "none.json"))))
    report.run(gpu.Step("serving", 1, ("http.server", "--bind", "127.0.0.1", "0")))
    figures = (tmp_path / "figures.txt").read_text()
    assert figures == capsys.readouterr().out
    assert "No such file" in figures
    assert "exit -9 after" in figures


def test_a_widened_vocabulary_ends_with_the_image_token() -> None:
    plain = Tokenizer.from_file(str(DEMO_BUNDLE / "generator" / "tokenizer.json"))
    wide = widened(plain, 2000)
    text = "the red star costs 12 coins"
    assert wide.encode(text).ids == plain.encode(text).ids
    assert wide.get_vocab_size() == 2000
    assert wide.token_to_id("<|image|>") == 1999
    assert all((wide.token_to_id(token) or 0) >= 1994 for token in SPECIAL.values())
