"""Processes that know a hub from their variables, as those of its users do."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmrag_batch.cli.logs import start_logging
from mmrag_batch.errors import MmragError
from tests.hub.server import Hub

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def folder(self) -> Path:
        assert self.code == 0, self.err
        return Path(self.out)


@dataclass
class Client:
    """Processes that fetch from a hub into one cache."""

    hub: Hub
    home: Path

    @property
    def environ(self) -> dict[str, str]:
        """The variables of this process, with those of a user of this hub."""
        known = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        own = {"HF_ENDPOINT": self.hub.url, "HF_HOME": str(self.home)}
        return known | own | {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}

    def start(self, function: str, name: str, part: str, **environ: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "tests.hub.client", function, name, part],
            cwd=ROOT,
            env=self.environ | environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(self, function: str, name: str, part: str = "generator", **environ: str) -> Done:
        process = self.start(function, name, part, **environ)
        out, err = process.communicate(timeout=60)
        return Done(process.returncode, out.strip(), err.strip())

    def fetch(self, name: str, part: str = "generator", **environ: str) -> Done:
        return self("fetch_part", name, part, **environ)

    def run(self, *commands: Sequence[object], folder: Path, **environ: str) -> list[Done]:
        """Run commands of ours in a folder, one after the other and all in one process: it takes
        that long to load what trains and exports."""
        words = [[str(word) for word in command] for command in commands]
        process = subprocess.run(
            [sys.executable, "-m", "tests.hub.client", json.dumps(words)],
            cwd=folder,
            env=self.environ | {"PYTHONPATH": str(ROOT)} | environ,
            stdout=subprocess.PIPE,
            text=True,
            timeout=300,
        )
        return [Done(*one) for one in json.loads(process.stdout)]


def main() -> None:
    """In a process of `Client`: call a function, or run commands."""
    if len(sys.argv) == 2:
        from typer.testing import CliRunner

        from mmrag_batch.cli.app import app

        results = [CliRunner().invoke(app, words) for words in json.loads(sys.argv[1])]
        sys.stdout.write(json.dumps([(one.exit_code, one.stdout, one.stderr) for one in results]))
    else:
        call(*sys.argv[1:])


def call(function: str, name: str, part: str) -> None:
    """Call one of the functions as a command would, and end as it would."""
    from mmrag_batch.hub import fetch

    start_logging()
    try:
        sys.stdout.write(str(getattr(fetch, function)(Path(name), part)))
    except MmragError as error:
        sys.stderr.write(str(error))
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
