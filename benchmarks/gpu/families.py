"""Whether both engines agree on a GPU about small random models of other families, in float32.

python -m benchmarks.gpu.families [NAME...]
"""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from tests.families.parity import main as compare
from tests.families.tiny import FAMILIES, build


def main(names: Annotated[list[str] | None, typer.Argument()] = None) -> None:
    """Compare them, one after the other, in this process."""
    with tempfile.TemporaryDirectory() as folder:
        for name in names or FAMILIES:
            build(name, Path(folder) / name / "generator")
            compare([str(Path(folder) / name)])


if __name__ == "__main__":
    typer.run(main)
