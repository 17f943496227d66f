"""Metrics of a run for Prometheus: a textfile for node_exporter's collector, replaced in one step.

Format: https://prometheus.io/docs/instrumenting/exposition_formats/
"""

import secrets
from collections.abc import Mapping
from pathlib import Path
from time import monotonic, time
from types import TracebackType
from typing import Self

from mmrag_batch.errors import ExitCode, MmragError, OutputError
from mmrag_batch.records import Status
from mmrag_batch.run.answers import no_rows
from mmrag_batch.run.files import check_ours

FIRST = "# TYPE mmrag_rows gauge\n"
"""What such a file begins with."""
EVERY = 15.0
"""Seconds between two files."""


class MetricsFile:
    """Writes metrics now and then, and once more in the end; a context manager.

    Without a path nothing is written, nor where another run writes the output: the file is then
    that run's. Raises OutputError where the file cannot be written or holds something else.
    """

    def __init__(self, path: Path | None, output: Path) -> None:
        self._path = path
        self._check_ours()
        self._label = str(output).replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
        self._rows: Mapping[Status, int] = no_rows()
        self._total = 0
        self._usage: Mapping[str, int] = {}
        self._started = time()
        self._written = monotonic()

    def _check_ours(self) -> None:
        """Raise OutputError for a file that holds anything but metrics."""
        if self._path is None or not check_ours(self._path):
            return
        with self._path.open("rb") as stream:
            head = stream.read(len(FIRST))
        if head and head != FIRST.encode():
            raise OutputError(f"{self._path} holds no metrics. Choose another --metrics-file.")

    def update(
        self, rows: Mapping[Status, int], total: int, usage: Mapping[str, int] | None = None
    ) -> None:
        """So many rows of `total` are written, by status; the tokens of it by kind, if that
        is new."""
        self._rows, self._total = rows, total
        self._usage = usage or self._usage
        if monotonic() - self._written >= EVERY:
            self._write(None)

    def begin(self) -> None:
        """The run is under way."""
        self._write(None)

    def withdraw(self) -> None:
        """Write nothing: it is another run that is under way."""
        self._path = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, MmragError):
            self.finish(error.exit_code)
        else:
            self.finish(ExitCode.OK if error is None else ExitCode.ERROR)

    def finish(self, exit_code: ExitCode) -> None:
        """Write what the run ends with."""
        self._write(exit_code)

    def _write(self, exit_code: int | None) -> None:
        if self._path is None:
            return
        self._written = monotonic()
        temporary = self._path.with_name(f"{self._path.name}.{secrets.token_hex(4)}")
        try:
            with temporary.open("x", encoding="utf-8") as stream:
                stream.writelines(self._lines(exit_code))
            temporary.replace(self._path)
        except OSError as error:
            raise OutputError(
                f"{self._path} cannot be written ({error.strerror}). Give --metrics-file a place "
                "that can be."
            ) from None

    def _lines(self, exit_code: int | None) -> list[str]:
        """One metric after the other; there is no exit code while the run goes on."""
        label = f'output="{self._label}"'
        lines = [FIRST]
        for status, rows in self._rows.items():
            lines.append(f'mmrag_rows{{{label},status="{status}"}} {rows}\n')
        if self._usage:
            lines.append("# TYPE mmrag_tokens gauge\n")
            for kind, tokens in self._usage.items():
                lines.append(f'mmrag_tokens{{{label},kind="{kind}"}} {tokens}\n')
        values = {"mmrag_rows_expected": self._total, "mmrag_run_start_time_seconds": self._started}
        if exit_code is not None:
            values["mmrag_run_exit_code"] = int(exit_code)
            values["mmrag_run_end_time_seconds"] = time()
        for name, value in values.items():
            lines.append(f"# TYPE {name} gauge\n{name}{{{label}}} {value}\n")
        return lines
