"""What a run says in the end: a line for people, or a record for programs."""

import logging
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmrag_batch.records import Status
from mmrag_batch.run.answers import Start, in_words, rate, tokens_in_words
from mmrag_batch.run.shards import Shard
from mmrag_batch.table.names import find_columns

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Summary:
    """How a run ended: `rows` are those of the output, or of one shard of it, by status, of which
    it has asked some and kept the answers of others. `seconds` are those of the run, rows a second
    are without the time in which models were loaded. `tokens` are those that a server counted, by
    kind, `next` is what to type then.
    """

    output: str
    shard: str | None
    rows: Mapping[Status, int]
    asked: int
    kept: int
    seconds: float
    rows_per_second: float | None
    tokens: Mapping[str, int]
    next: str

    def line(self) -> str:
        """The same for people."""
        what = self.output if self.shard is None else f"{self.output}, shard {self.shard}"
        parts = [f"{what}: {sum(self.rows.values()):,} rows, {self.asked:,} asked now "]
        parts[0] += f"({in_words(self.rows)}) in {self.seconds:,.1f} s"
        if self.rows_per_second is not None:
            parts.append(f"{self.rows_per_second:,.1f} rows/s")
        if self.tokens:
            parts.append(tokens_in_words(self.tokens))
        return f"{', '.join(parts)}. Next: {self.next}"


class Ending:
    """Tells how a run ends, in the log and to who asked for a record. `start` is the process that
    has asked rows, if any has."""

    def __init__(
        self, output: Path, shard: Shard | None, telling: Callable[[Summary], None]
    ) -> None:
        self._output, self._shard, self._telling = output, shard, telling
        self._began = time.monotonic()
        self.start: Start | None = None

    def tell(
        self,
        rows: Mapping[Status, int],
        columns: Sequence[str],
        names: Mapping[str, str],
        *,
        asked: int = 0,
        kept: int | None = None,
    ) -> None:
        """All rows are done, of a table with these columns, some under `names` of its own; those of
        them that were kept are all, where nothing else is said."""
        shard, start = self._shard, self.start
        summary = Summary(
            output=str(self._output),
            shard=None if shard is None else f"{shard.index}/{shard.count}",
            rows=rows,
            asked=asked,
            kept=sum(rows.values()) if kept is None else kept,
            seconds=round(time.monotonic() - self._began, 3),
            rows_per_second=None if start is None else rate(start.asked, start.seconds),
            tokens={} if start is None else start.usage,
            next=self._next(columns, names),
        )
        log.info("%s", summary.line())
        self._telling(summary)

    def _next(self, columns: Sequence[str], names: Mapping[str, str]) -> str:
        output = shlex.quote(str(self._output))
        if self._shard is not None:
            return f"mmrag-batch merge {output}"
        labelled = "label" in {*columns, *find_columns(columns, names)}
        command = f"mmrag-batch {'evaluate' if labelled else 'report'} {output}"
        if not names:
            return command
        ours = ",".join(f"{name}={theirs}" for name, theirs in names.items())
        return f"{command} --columns {shlex.quote(ours)}"
