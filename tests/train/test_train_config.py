from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from mmrag_batch.errors import ConfigError
from mmrag_batch.train.config import load_config
from mmrag_batch.train.demo_encoders import EncodersConfig
from mmrag_batch.train.generator import GeneratorConfig
from mmrag_batch.train.retriever import RetrieverConfig

CONFIGS = Path(__file__).parents[2] / "train" / "configs"


@dataclass(frozen=True)
class Settings:
    out: Path
    steps: int
    rate: float
    scoring: Literal["letter", "text"] = "text"
    base: Path | None = None


def load(directory: Path, text: str) -> Settings:
    file = directory / "settings.yaml"
    file.write_text(text)
    return load_config(file, Settings)


def test_values_take_the_types_of_the_settings(tmp_path: Path) -> None:
    found = load(tmp_path, "out: runs/a\nsteps: 3\nrate: 1e-3\nscoring: letter\nbase: b\n")
    assert found == Settings(Path("runs/a"), 3, 0.001, "letter", Path("b"))


def test_what_has_a_default_may_be_left_out(tmp_path: Path) -> None:
    found = load(tmp_path, "out: a\nsteps: 3\nrate: 1\nbase:\n")
    assert found == Settings(Path("a"), 3, 1.0)
    assert isinstance(found.rate, float)


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, "stepz: 3\nsteps: many\nrate: fast\nscoring: digit\nbase: 3\n")
    message = str(caught.value)
    assert "settings.yaml" in message
    for problem in (
        "unknown key 'stepz'",
        "key 'out' is missing",
        "'steps' should be int, not 'many'",
        "'rate' should be a number, not 'fast'",
        "'scoring' should be one of ('letter', 'text'), not 'digit'",
        "'base' should be Path, not 3",
    ):
        assert problem in message


@pytest.mark.parametrize("text", ["- out\n- steps\n", "steps", "out: [", ""])
def test_what_is_no_list_of_settings_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"settings\.yaml"):
        load(tmp_path, text)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml cannot be read"):
        load_config(tmp_path / "none.yaml", Settings)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("demo_encoders.yaml", EncodersConfig),
        ("demo_retriever.yaml", RetrieverConfig),
        ("demo_base.yaml", GeneratorConfig),
        ("demo_generator.yaml", GeneratorConfig),
    ],
)
def test_the_configs_of_the_demo_load(name: str, kind: type) -> None:
    assert isinstance(load_config(CONFIGS / name, kind), kind)


def test_an_optional_path_is_a_path() -> None:
    tuned = load_config(CONFIGS / "demo_generator.yaml", GeneratorConfig)
    assert isinstance(tuned.retriever, Path)
