"""The commands of the pages that make models, typed as they stand there, on little of everything:
worlds of few rows, configs of two steps, and a small model under the name of the large one.

Elsewhere: those that name a CLIP (export/test_from_folders.py), the hub (hub/test_commands.py) or
ImageBind's weights, which are 5 GB (export/test_imagebind.py).
"""

import shutil
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from mmrag_batch.cli.app import app
from tests.test_docs import PAGES, ROOT, named_commands, on_tables

LITTLE = {
    **dict.fromkeys(("steps", "language_steps", "save_every"), 2),
    **dict.fromkeys(("epochs", "accumulate"), 1),
    **dict.fromkeys(("batch_size", "picture_batch", "text_batch"), 4),
    "pictures": 8,
}
SMALL = {"width": 32, "heads": 2, "image_blocks": 1, "text_blocks": 1}
"""Encoders: what takes time is to write their graphs."""
ELSEWHERE = ("clip", "hf:", "--imagebind", "--help", "DIR")


def commands_that_make_models() -> list[list[str]]:
    """In the order of the pages; the README's are among them."""
    commands = named_commands((*PAGES[1:], PAGES[0]))
    makers = [words for words in commands if words[1] in {"demo", "train", "export"}]
    return [
        words
        for words in makers
        if len(words) > 3 and not any(one in word for one in ELSEWHERE for word in words)
    ]


@pytest.fixture
def checkout(
    tmp_path: Path, tiny_generator_dir: Path, demo_table: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A checkout whose configs take little time, with the model and the table that pages name."""
    for folder in ("train/configs", "export/configs"):
        (tmp_path / folder).mkdir(parents=True)
        for file in (ROOT / folder).glob("*.yaml"):
            config = yaml.safe_load(file.read_text())
            config |= {name: value for name, value in LITTLE.items() if name in config}
            config |= SMALL if "picture_batch" in config else {}
            config.pop("held_out", None)  # by which the best adapter could be the one of no step
            (tmp_path / folder / file.name).write_text(yaml.safe_dump(config))
    shutil.copytree(tiny_generator_dir, tmp_path / "models" / "Llama-3.2-11B-Vision-Instruct")
    shutil.copytree(demo_table.parent, tmp_path / "my-data")
    (tmp_path / "my-data" / demo_table.name).rename(tmp_path / "my-data" / "train.csv")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_each_command_of_the_pages_that_make_models_runs_after_the_one_before(
    checkout: Path,
) -> None:
    commands = commands_that_make_models()
    assert len(commands) >= 20
    for words in commands:
        if "--rows" in words:
            words[words.index("--rows") + 1] = "40"
        if words[1:3] == ["train", "retriever"] and "own_retriever" in words[3]:
            shutil.copytree("build/demo/graphs", "runs/graphs")  # in place of ImageBind's
        for name in ("my-bundle", "runs/generator"):  # made by several pages, each time anew
            if words[1] == ("export" if name == "my-bundle" else "train"):
                shutil.rmtree(name, ignore_errors=True)
        done = CliRunner().invoke(app, words[1:])
        assert done.exit_code == 0, (words, done.output, done.exception)
    for bundle in ("build/demo/bundle", "my-bundle"):
        assert (checkout / bundle / "bundle.json").is_file()


RUN_ELSEWHERE = {
    "export --encoders clip --generator Llama-3.2-11B-Vision-Instruct --out my-bundle": (
        "export/test_from_folders.py"  # under the names that another page has for the folders
    ),
    "export --encoders models/clip-vit-base-patch32 --generator "
    "models/Llama-3.2-11B-Vision-Instruct --out my-bundle": "export/test_from_folders.py",
    "export --encoders DIR --generator my-bundle --out NEW": "export/test_from_folders.py",
    "export encoders --encoders hf:google/siglip2-base-patch16-224 --out runs/graphs": (
        "hub/test_commands.py"
    ),
    "export encoders --imagebind models/imagebind_huge.pth --out runs/graphs": (
        "export/test_imagebind.py"  # with weights of fewer bytes
    ),
    "export encoders --clip DIR": "export/test_clip.py",
    "demo world DIR --rows N --seed S": "cli/test_demo.py",
    "index corpus qdrant+http://localhost:6333/docs": "run/test_qdrant.py",
    "predict in.csv out.csv --corpus qdrant+http://localhost:6333/docs": "run/test_qdrant.py",
    "doctor --bundle my-bundle": "families/test_parity.py",
    "export --help": "test_house.py",
    "export --keys": "cli/test_init.py",
    "init my-project": "cli/test_init.py",
    "export encoders": "cli/test_models.py",  # its name alone
    "predict in.csv out.csv --ray auto": "execute/test_ray.py",
}
"""What is not typed just as it stands on the page, and where the like of it is run."""


def test_every_command_of_the_pages_is_run_by_a_test() -> None:
    run = [
        *on_tables(),
        *(words for engine in ("vllm", "server", "chat") for words in on_tables(engine=engine)),
        *commands_that_make_models(),
    ]
    named = [words for words in named_commands() if words[0] == "mmrag-batch" and len(words) > 2]
    others = [" ".join(words[1:]) for words in named if words not in run and words[1] != "import"]
    assert sorted(others) == sorted(RUN_ELSEWHERE)
    assert all((ROOT / "tests" / file).is_file() for file in RUN_ELSEWHERE.values())
