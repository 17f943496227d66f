"""The rules of the house: which way imports go, how long a module is, what `--help` loads."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("mmrag_batch", "train", "export")
LAYERS = (
    "__main__",
    "api cli",
    "datasets",
    "run doctor",
    "export",
    "train",
    "factory parity testing",
    "execute report",
    "retrieval generation",
    "table",
    "images families",
    "parts",
    "hub",
    "bundle settings stages extras plugs configs trackers",
    "prompt declare progress sources remote confined specs machine",
    "records",
    "errors",
    "masking",
)
"""Folders and modules of mmrag_batch: each imports from layers below its own alone."""
MAKERS = {"train", "export"}
HEAVY = {
    "torch",
    "onnxruntime",
    "transformers",
    "vllm",
    "pandas",
    "numpy",
    "PIL",
    "huggingface_hub",
    "rich",
}
COMMANDS = [
    [],
    ["predict"],
    ["status"],
    ["merge"],
    ["validate"],
    ["evaluate"],
    ["calibrate"],
    ["explain"],
    ["report"],
    ["doctor"],
    ["import"],
    ["init"],
    ["index"],
    ["train"],
    ["train", "encoders"],
    ["train", "generator"],
    ["train", "retriever"],
    ["train", "vision"],
    ["export"],
    ["export", "encoders"],
    ["export", "generator"],
    ["export", "towers"],
    ["demo"],
    ["demo", "world"],
    ["demo", "encoders"],
    ["demo", "generator"],
    ["demo", "vision"],
]


def name_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    return name if parts[0] == "mmrag_batch" else f"mmrag_batch.{name}"


MODULES = {name_of(file): file for package in PACKAGES for file in (ROOT / package).rglob("*.py")}


def imports_of(tree: ast.AST) -> Iterator[str]:
    """Every module of ours that is imported anywhere below `tree`."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [node.module or ""]
            names += [f"{node.module}.{alias.name}" for alias in node.names]
        yield from (name for name in names if name in MODULES)


def is_below(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def outside_functions(tree: ast.Module) -> ast.Module:
    """The module without what only runs when one of its functions is called."""

    class Cut(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
            return None

    cut: ast.Module = Cut().visit(tree)
    return cut


def parse(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


IMPORTS = {module: set(imports_of(parse(module))) - {module} for module in MODULES}
# A package is imported with each of its modules, so its own `__init__` must import nothing of ours.
ARROWS = [(module, other) for module, others in IMPORTS.items() for other in others]


def test_the_arrows_are_seen() -> None:
    assert ("mmrag_batch.stages", "mmrag_batch.records") in ARROWS
    assert ("mmrag_batch.cli.models", "mmrag_batch.export.bundle") in ARROWS
    assert len(ARROWS) > 100


def room_of(module: str) -> str | None:
    """The folder or module right below mmrag_batch; None for the package itself and others."""
    package, _, inner = module.partition(".")
    return inner.partition(".")[0] if package == "mmrag_batch" and inner else None


def test_every_room_has_its_layer() -> None:
    rooms = [room for layer in LAYERS for room in layer.split()]
    assert len(rooms) == len(set(rooms))
    assert set(rooms) == {room_of(module) for module in MODULES} - {None}


def test_arrows_go_down() -> None:
    level = {room: -at for at, layer in enumerate(LAYERS) for room in layer.split()}
    for module, other in ARROWS:
        here, there = room_of(module), room_of(other)
        if here and there and here != there:
            assert level[here] > level[there], (
                f"{module} imports {other}, but {here} is not above {there}"
            )


def test_the_runtime_does_not_know_how_its_models_are_made() -> None:
    makers = [
        (module, other)
        for module, other in ARROWS
        if room_of(module) not in MAKERS and room_of(other) in MAKERS
    ]
    commands = {f"mmrag_batch.cli.{name}" for name in ("demo", "init", "models")}
    assert {module for module, _ in makers} == commands
    loaded = {name for one in commands for name in imports_of(outside_functions(parse(one)))}
    assert not MAKERS & {room_of(module) for module in loaded}


@pytest.mark.parametrize("leaf", ["errors", "masking", "records"])
def test_the_leaves_import_nothing_of_ours(leaf: str) -> None:
    assert IMPORTS[f"mmrag_batch.{leaf}"] <= {"mmrag_batch.masking"}


@pytest.mark.parametrize("module", ["mmrag_batch.execute.local", "mmrag_batch.stages"])
def test_the_pipeline_knows_stages_and_records_only(module: str) -> None:
    known = {"mmrag_batch", "mmrag_batch.errors", "mmrag_batch.records", "mmrag_batch.stages"}
    assert IMPORTS[module] <= known


def test_configuration_stops_at_the_factory() -> None:
    users = {module for module, other in ARROWS if other == "mmrag_batch.settings"}
    known = {"api", "cli.app", "cli.checks", "factory", "run.plan", "run.predict", "testing"}
    known |= {"doctor", "parity"}  # which open engines as a run does
    known |= {"run.explain", "run.again", "run.recall"}  # which open all of a run but its engine
    known |= {"run.copies", "run.validate"}  # which bring here what a run was given the name of
    known |= {"run.calibrate"}  # which asks what a run was given
    known |= {"cli.corpus", "run.index"}  # which take from them what retrieval needs
    known |= {"parts"}  # which knows where the demo bundle is
    known |= {"cli.init"}  # which writes a file of them
    openers = {"generation.engine", "execute.executor", "execute.ray"}
    openers |= {
        f"retrieval.{name}"
        for name in ("candidates", "corpus_source", "given", "qdrant", "retriever")
    }
    engines = {module for module in users if is_below(module, "mmrag_batch.generation.engines")}
    assert users - engines <= {f"mmrag_batch.{module}" for module in known | openers}


def test_imports_have_no_circle() -> None:
    left = dict(IMPORTS)
    while free := [module for module, others in left.items() if not others & left.keys()]:
        for module in free:
            del left[module]
    assert not left, f"a circle among {sorted(left)}"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_no_module_is_long(module: str) -> None:
    assert len(MODULES[module].read_text(encoding="utf-8").splitlines()) <= 300


HELP = """
import io, json, os, sys
from contextlib import redirect_stdout, suppress
from mmrag_batch.__main__ import main

for words in json.loads(sys.argv[1]):
    if child := os.fork():
        assert os.waitpid(child, 0)[1] == 0, words
        continue
    sys.argv = ["mmrag-batch", *words, "--help"]
    with redirect_stdout(io.StringIO()) as said, suppress(SystemExit):
        main()
    modules = {name.partition(".")[0] for name in sys.modules}
    print(json.dumps([" ".join(words), "Usage:" in said.getvalue(), sorted(modules)]), flush=True)
    os._exit(0)
"""
"""What a command's help loads, in a process that has loaded nothing but what all of them do."""


@pytest.fixture(scope="module")
def loaded_by_help() -> dict[str, set[str]]:
    """By command."""
    arguments = [sys.executable, "-c", HELP, json.dumps(COMMANDS)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, cwd=ROOT)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {command: set(modules) for command, is_help, modules in lines if is_help}


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_h06_help_loads_nothing_heavy(
    command: list[str], loaded_by_help: dict[str, set[str]]
) -> None:
    loaded = loaded_by_help[" ".join(command)]
    assert "typer" in loaded
    assert loaded & HEAVY == set()
