"""A folder with a table and its outputs, and a model that knows what every command must do to it.

The model never takes an answer from a store: it knows what was asked (the double logs that), what
the files held then, and from a store no more than which answers are committed.
"""

import csv
import errno
import hashlib
import io
import json
import re
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

from mmrag_batch.errors import OutputError
from mmrag_batch.records import Answer, Document, Question, Status
from mmrag_batch.run.database import journal_of
from mmrag_batch.run.files import Paths
from mmrag_batch.run.keys import key_maker
from mmrag_batch.run.manifest import read_manifest
from mmrag_batch.run.plan import find_answer_settings
from mmrag_batch.run.shards import find_shard
from mmrag_batch.run.store import AnswerStore
from mmrag_batch.settings import PredictSettings
from mmrag_batch.sources import image_files
from mmrag_batch.table.output import RowFormat
from mmrag_batch.table.record import Record
from mmrag_batch.table.rows import parse_row
from tests.faults.commands import Commands, Done, Fault
from tests.faults.double import COMMIT_ROWS, HOOK, Digests, Script, name_of, reply

COLUMNS = tuple("id question_text question_image answer_choices documents note label".split())
IMAGES = ("a.png", "b.png", "c.png")
STATUSES = ("ok", "degraded", "error")
SHARED = "shared.store"
SHARD_NAME = re.compile(r"([0-9]+)-of-([0-9]+)")
ENDED = (0, 3)
EndKind = Literal["kill", "torn", "power", "full", "asked", "stop", "time"]


class End(NamedTuple):
    """How a command is ended from outside: at an operation of the disk (`full` is a disk that is,
    from there on), by its own hand after so many questions (`asked`, and `stop` by a signal that
    asks it to), or after so many milliseconds."""

    kind: EndKind
    at: int
    only: str = ""
    """The names of operations that are counted."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of the table. `documents` are texts, or names of images."""

    text: str
    choices: tuple[str, ...] = ()
    image: str | None = None
    documents: tuple[str, ...] = ()
    note: str = ""
    label: str = ""
    id: str = ""
    broken: bool = False

    def question(self) -> Question:
        """What it asks."""
        documents = tuple(
            Document(str(n), *((None, item) if item in IMAGES else (item, None)))
            for n, item in enumerate(self.documents)
        )
        return Question(self.text, self.image, self.choices, documents, None, None)

    def cells(self) -> dict[str, object]:
        """What stands in its cells."""
        return {
            "id": self.id,
            "question_text": self.text,
            "question_image": self.image or "",
            "answer_choices": "not a list" if self.broken else _list(self.choices),
            "documents": _list(self.documents),
            "note": self.note,
            "label": self.label,
        }


class Given(NamedTuple):
    """An answer, what the files of its question held, and the number of the start that gave it;
    `origin` is the store where that began, and its number there."""

    answer: Answer
    digests: Digests
    start: int
    origin: tuple[str, int] = ("", 0)


Answers = dict[bytes, Given]


@dataclass(slots=True)
class Store:
    """What is committed: answers, and of what settings and rows the notes say that they are."""

    answers: Answers = field(default_factory=dict)
    top_k: int | None = None
    limit: int | None = None
    withholds: bool = False
    has_table: bool = False
    published: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Order:
    """A command, and what it must do: with the rows of its `own` store, as that was `before`."""

    words: tuple[str, ...]
    code: int
    own: str
    before: Store
    missing: frozenset[bytes]
    """The questions that it asks."""
    adoptable: Answers
    """What it may take from other stores."""
    output: str | None
    rows: range
    top_k: int
    environ: Mapping[str, str] = field(default_factory=dict)
    is_alone: bool = True
    withholds: bool = False


class WrongError(AssertionError):
    """A promise is broken."""


def _list(items: Sequence[str]) -> str:
    return json.dumps(list(items)) if items else ""


@cache
def settings_of(top_k: int) -> dict[str, object]:
    """What the answers of commands with this --top-k depend on."""
    paths = Path("in.csv"), Path("out.csv")
    return find_answer_settings(PredictSettings(*paths, engine="scripted", top_k=top_k))


@cache
def _key_of(top_k: int, question: Question) -> bytes:
    return key_maker(settings_of(top_k))(question)


def render(
    entries: Iterable[Entry], answers: Mapping[bytes, Given], top_k: int, *, withholds: bool = False
) -> bytes:
    """The output of a table; rows without an answer are left out."""
    row_format = RowFormat(Path("out.csv"), COLUMNS)
    lines = [row_format.header]
    line = 2
    for number, entry in enumerate(entries):
        answer = answer_to(number, line, entry, answers, top_k)
        if answer is not None:
            if withholds and answer.probabilities:  # which are never more than a half
                answer = replace(answer, status="abstained", prediction=None, index=None)
            lines.append(row_format.row(entry.cells(), line, answer))
        line += 1 + entry.note.count("\n")
    return b"".join(lines)


def answer_to(
    number: int, line: int, entry: Entry, answers: Mapping[bytes, Given], top_k: int
) -> Answer | None:
    """The answer that a row has."""
    if entry.broken:
        error = parse_row(number, Record(line, entry.cells())).error
        assert error is not None
        return Answer("error", problems=(error,))
    given = answers.get(_key_of(top_k, entry.question()))
    return None if given is None else given.answer


class World:
    """The folder, and what the model knows of it."""

    def __init__(self, commands: Commands, root: Path, counts: Counter[str] | None = None) -> None:
        self.folder = root / "folder"
        self.scratch = root / "scratch"
        self.folder.mkdir(parents=True)
        self.scratch.mkdir()
        self.entries: list[Entry] = []
        self.images: dict[str, bytes] = {}
        self.stores: dict[str, Store] = {}
        """By their path below the folder."""
        self.outputs: dict[str, bytes] = {}
        self.tampered: set[str] = set()
        """Outputs that somebody edited."""
        self.unvouched: set[str] = set()
        """Outputs that nothing says what they are, as somebody removed what did."""
        self.top_k = 2
        self.withholds = False
        """Whether runs are to abstain."""
        self.counts: Counter[str] = Counter() if counts is None else counts
        self.history: list[str] = []
        self.commands = commands
        self._questions: dict[bytes, Question] = {}
        """Every question of any table, by its keys."""
        (self.folder / "notes.txt").write_text("somebody's")
        self.write_table()

    # What people do.

    def write_table(self) -> None:
        """Put the table into its file."""
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(COLUMNS)
        for entry in self.entries:
            table.writerow(entry.cells().values())
            question = entry.question()
            self._questions |= {_key_of(top_k, question): question for top_k in (2, 3)}
        (self.folder / "in.csv").write_bytes(text.getvalue().encode())
        self.history.append(f"# a table of {len(self.entries)} rows")

    def set_image(self, name: str, content: bytes | None) -> None:
        """Have an image file hold this, or go."""
        self.history.append(f"# {name} holds {content!r}")
        if content is None:
            self.images.pop(name, None)
            (self.folder / name).unlink(missing_ok=True)
        else:
            self.images[name] = content
            (self.folder / name).write_bytes(content)

    def edit_output(self, name: str, at: int) -> None:
        """Truncate an output, or change a byte of it."""
        data = self.outputs.get(name)
        if not data or name in self.tampered:
            return
        place = at % len(data)
        edited = data[:place] + (b"" if at % 2 else bytes([data[place] ^ 1]) + data[place + 1 :])
        (self.folder / name).write_bytes(edited)
        self.outputs[name] = edited
        self.tampered.add(name)

    def remove_manifest(self, name: str) -> None:
        """Lose the manifest of an output."""
        (self.folder / f"{name}.manifest.json").unlink(missing_ok=True)
        store = self.stores.get(_store_of(name), Store())
        if name in self.outputs and not self._is_noted(name, store):
            self.unvouched.add(name)

    # What they run.

    def predict(
        self,
        output: str = "out.csv",
        *,
        end: End | None = None,
        flags: Sequence[str] = (),
        limit: int | None = None,
        top_k: int | None = None,
    ) -> Done:
        """Run `predict` for all rows, or the first of them."""
        words = ["predict", "in.csv", output, *flags]
        words += ["--limit", str(limit)] if limit is not None else []
        words += ["--store", SHARED] if output != "out.csv" else []
        top_k = self.top_k if top_k is None else top_k
        rows = range(len(self.entries))[:limit]
        own = _store_of(output)
        before = self._begin(own, flags)
        code, missing, adoptable = self._expect(before, output, own, rows, flags, top_k, limit)
        words += ["--engine", "scripted", "--top-k", str(top_k), *self._abstaining()]
        order = Order(tuple(words), code, own, before, missing, adoptable, output, rows, top_k)
        return self._run(replace(order, withholds=self.withholds), end)

    def _abstaining(self) -> list[str]:
        return ["--abstain-below", "0.6"] if self.withholds else []

    def shard(
        self, index: int, count: int, *, end: End | None = None, flags: Sequence[str] = ()
    ) -> Done:
        """Run `predict` for a shard."""
        order = self._order_shard(index, count, flags)
        words = (*order.words, "--shard", f"{index}/{count}")
        return self._run(replace(order, words=words), end)

    def array(
        self,
        environs: Sequence[Mapping[str, str]],
        endings: Sequence[End | None],
        *,
        flags: Sequence[str] = (),
    ) -> None:
        """Run the tasks of a Slurm array one after the other."""
        for environ, end in zip(environs, endings):
            self._run(self._order_task(environ, flags), end)

    def array_at_once(
        self, environs: Sequence[Mapping[str, str]], endings: Sequence[End | None]
    ) -> None:
        """The same side by side."""
        orders = [self._order_task(environ, ()) for environ in environs]
        given = {key: self._given(key, 0) for order in orders for key in order.missing}
        with ThreadPoolExecutor(len(orders)) as pool:
            logs = [self.scratch / f"asked-{place}" for place in range(len(orders))]
            ended = list(pool.map(self._call, orders, endings, logs))
        for order, end, log, done in zip(orders, endings, logs, ended):
            adoptable = given | order.adoptable
            order = replace(order, adoptable=adoptable, is_alone=False)
            self._judge(order, end, done, log, self._asides())

    def _look_on(self, *words: str) -> Done:
        order = Order(words, 0, "", Store(), frozenset(), {}, None, range(0), 2)
        return self._call(order, None, self.scratch / "asked")

    def _order_shard(self, index: int, count: int, flags: Sequence[str]) -> Order:
        first, stop = (len(self.entries) * place // count for place in (index, index + 1))
        own = f"out.csv.shards/{index}-of-{count}.store"
        before, rows, top_k = self._begin(own, flags), range(first, stop), self.top_k
        code, missing, adoptable = self._expect(before, None, own, rows, flags, top_k, None)
        words = ("predict", "in.csv", "out.csv", *flags, "--engine", "scripted")
        words = (*words, "--top-k", str(top_k), *self._abstaining())
        return Order(words, code, own, before, missing, adoptable, None, rows, top_k)

    def _order_task(self, environ: Mapping[str, str], flags: Sequence[str]) -> Order:
        copy = self.scratch / "out.csv.shards"  # as looking may roll commits back
        shutil.rmtree(copy, ignore_errors=True)
        if (self.folder / copy.name).exists():
            shutil.copytree(self.folder / copy.name, copy)
        shard = find_shard(None, environ, self.scratch / "out.csv")
        assert shard is not None
        return replace(self._order_shard(shard.index, shard.count, flags), environ=environ)

    def merge(self, *, end: End | None = None, flags: Sequence[str] = ()) -> Done:
        """Run `merge`."""
        own = "out.csv.store"
        before = self.stores.get(own, Store())
        kinds, limit = self._job()
        ways = self._ways(self._shards())
        withholds = next(iter(ways), before.withholds)
        top_k, rows = next(iter(kinds), 2), range(len(self.entries))[:limit]
        adoptable = self._adoptable(before.answers, self._shards(), rows, top_k, frozenset())
        merged = before.answers | adoptable
        if len(kinds) != 1 or not self._shards():
            code = 78 if len(kinds) > 1 and self._shards() else 66
        elif len(ways) > 1:
            code = 78
        elif refusal := self._refusal("out.csv", flags):
            code = refusal
        elif self._missing(merged, rows, top_k):
            code = 4
        else:
            code = 3 if self._has_errors(merged, rows, top_k) else 0
        words, nothing = ("merge", "out.csv", *flags), frozenset[bytes]()
        order = Order(words, code, own, before, nothing, adoptable, "out.csv", rows, top_k)
        return self._run(replace(order, withholds=withholds), end)

    def status(self) -> Done:
        """Look how far the output is."""
        done = self._look_on("status", "out.csv")
        self._check_folder(done)
        allowed = {0, 66}
        if "out.csv" in self.outputs and "out.csv" not in self.tampered | self.unvouched:
            allowed = {0}
        elif "out.csv" in self.outputs and read_manifest(Paths.of(self.folder / "out.csv")):
            allowed = {78}
        self._check(done.code in allowed, done, f"expected one of {allowed}")
        return done

    def write_so_far(self) -> Done:
        """Have the rows written that are answered so far."""
        target = self.folder / "so-far.csv"
        done = self._look_on("status", "out.csv", "--write", target.name)
        names = ["out.csv.store", *self._shards()]
        kinds, limit = self._job()
        ways = self._ways(self._shards())
        if len(kinds) != 1 or len(ways) > 1:
            self._check(done.code == (78 if kinds else 66), done, "no job, or of two kinds")
            self._check(not target.exists(), done, "something was written")
        else:
            (top_k,) = kinds
            rows = range(len(self.entries))[:limit]
            answers = self._adoptable({}, names, rows, top_k, frozenset())
            self._check(done.code == 0, done, "expected 0")
            withholds = next(iter(self._ways(["out.csv.store"]) or ways))
            expected = render(self.entries[:limit], answers, top_k, withholds=withholds)
            self._check(target.read_bytes() == expected, done, "wrong rows so far")
            target.unlink()
        self._check_folder(done)
        return done

    # What the model expects.

    def digests(self, question: Question) -> Digests:
        """What the files of a question hold now."""
        found: dict[str, str | None] = {}
        for name in image_files(question):
            data = self.images.get(name)
            found[name] = None if data is None else hashlib.sha256(data).hexdigest()
        return found

    def expected(
        self, answers: Mapping[bytes, Given], rows: range, top_k: int, *, withholds: bool = False
    ) -> bytes | None:
        """The output; None where rows have no answer."""
        if self._missing(answers, rows, top_k):
            return None
        return render(self.entries[: rows.stop], answers, top_k, withholds=withholds)

    def _ways(self, names: Iterable[str]) -> set[bool]:
        """Whether answers are to be withheld, as the notes of stores have it."""
        stores = [self.stores.get(name, Store()) for name in names]
        known = [one for one in stores if one.answers and one.has_table]
        return {one.withholds for one in known}

    def _job(self) -> tuple[set[int], int | None]:
        """What the stores of out.csv hold answers to: of what --top-k, and how many rows."""
        stores = [self.stores.get(name, Store()) for name in ("out.csv.store", *self._shards())]
        known = [store for store in stores if store.answers and store.has_table]
        limits = [store.limit for store in known if store.top_k is not None]
        limit = None if None in limits else max((limit or 0 for limit in limits), default=None)
        return {store.top_k for store in known if store.top_k is not None}, limit

    def _begin(self, own: str, flags: Sequence[str]) -> Store:
        return Store() if "--fresh" in flags else self.stores.get(own, Store())

    def _expect(
        self,
        before: Store,
        output: str | None,
        own: str,
        rows: range,
        flags: Sequence[str],
        top_k: int,
        limit: int | None,
    ) -> tuple[int, frozenset[bytes], Answers]:
        """The exit code, the questions that are asked, and the answers that other stores have."""
        nothing: tuple[frozenset[bytes], Answers] = frozenset(), {}
        if output is not None and (refusal := self._refusal(output, flags)):
            return refusal, *nothing
        if output is not None and "--fresh" not in flags and not before.answers:
            found = self._expect_without_store(output, flags, top_k, limit)
            if found is not None:
                return found, *nothing
        stores = [before]
        if output is None and "--fresh" not in flags:
            stores.append(self.stores.get("out.csv.store", Store()))
        if any(store.answers and store.top_k not in (None, top_k) for store in stores):
            return 78, *nothing
        return self._expect_work(before, output, own, rows, flags, top_k)

    def _expect_without_store(
        self, output: str, flags: Sequence[str], top_k: int, limit: int | None
    ) -> int | None:
        """The exit code where an output is there and its answers are not."""
        manifest = read_manifest(Paths.of(self.folder / output))
        if manifest is None or output in self.tampered or output not in self.outputs:
            return None
        table = hashlib.sha256((self.folder / "in.csv").read_bytes()).hexdigest()
        same = manifest.settings == json.loads(json.dumps(settings_of(top_k)))
        is_done = (
            same
            and "--verify-inputs" not in flags
            and not any(manifest.rows[status] for status in _again(flags))
            and not ("degraded" in _again(flags) and manifest.rows.get("abstained"))
            and (manifest.presentation["abstain_below"] > 0) == self.withholds
            and manifest.limit == limit
            and manifest.input["sha256"] == table
        )
        if is_done:
            return 3 if manifest.rows["error"] else 0
        return 78 if manifest.asked + manifest.kept else None

    def _expect_work(
        self,
        before: Store,
        output: str | None,
        own: str,
        rows: range,
        flags: Sequence[str],
        top_k: int,
    ) -> tuple[int, frozenset[bytes], Answers]:
        again, verify = _again(flags), "--verify-inputs" in flags
        missing = self._missing(before.answers, rows, top_k, again, verify=verify)
        adoptable: Answers = {}
        if missing and not verify and "--fresh" not in flags:
            others = [name for name in ("out.csv.store", *self._shards()) if name != own]
            if output not in (None, "out.csv"):
                others = []
            adoptable = self._adoptable(before.answers, others, rows, top_k, again)
            missing = self._missing(before.answers | adoptable, rows, top_k, again)
        after = before.answers | adoptable
        for key in missing:
            after[key] = self._given(key, 0)
        return (3 if self._has_errors(after, rows, top_k) else 0), missing, adoptable

    def _refusal(self, output: str, flags: Sequence[str]) -> int:
        if output not in self.outputs or "--overwrite" in flags:
            return 0
        if output not in self.tampered and output not in self.unvouched:
            return 0
        return 78 if read_manifest(Paths.of(self.folder / output)) is not None else 73

    def _keys(self, rows: range, top_k: int) -> Iterator[bytes]:
        for entry in self.entries[rows.start : rows.stop]:
            if not entry.broken:
                yield _key_of(top_k, entry.question())

    def _question(self, key: bytes) -> Question:
        return self._questions[key]

    def _given(self, key: bytes, start: int) -> Given:
        question = self._question(key)
        digests = self.digests(question)
        return Given(reply(question, digests), digests, start)

    def _missing(
        self,
        answers: Mapping[bytes, Given],
        rows: range,
        top_k: int,
        again: frozenset[Status] = frozenset(),
        *,
        verify: bool = False,
    ) -> frozenset[bytes]:
        def accepts(key: bytes) -> bool:
            given = answers.get(key)
            if given is None or given.answer.status in again:
                return False
            return not verify or given.digests == self.digests(self._question(key))

        return frozenset(key for key in self._keys(rows, top_k) if not accepts(key))

    def _has_errors(self, answers: Mapping[bytes, Given], rows: range, top_k: int) -> bool:
        return any(entry.broken for entry in self.entries[rows.start : rows.stop]) or any(
            answers[key].answer.status == "error" for key in self._keys(rows, top_k)
        )

    def _shards(self) -> list[str]:
        names = [name for name in self.stores if "shards/" in name]
        return sorted(names, key=lambda name: [int(n) for n in SHARD_NAME.findall(name)[0]][::-1])

    def _adoptable(
        self,
        own: Mapping[bytes, Given],
        others: Iterable[str],
        rows: range,
        top_k: int,
        again: frozenset[Status],
    ) -> Answers:
        """What other stores have that is better than what a store has, or newer."""
        adopted: Answers = {}
        wanted = set(self._keys(rows, top_k))
        for name in others:
            for key, given in self.stores.get(name, Store()).answers.items():
                mine = adopted.get(key) or own.get(key)
                if key in wanted and given.answer.status not in again and _takes(given, mine):
                    adopted[key] = given
        return adopted

    # What happened.

    def _run(self, order: Order, end: End | None) -> Done:
        asides, log = self._asides(), self.scratch / "asked"
        done = self._call(order, end, log)
        self._judge(order, end, done, log, asides)
        return done

    def _judge(self, order: Order, end: End | None, done: Done, log: Path, asides: int) -> None:
        self._check_code(done, end, order.code)
        before, has_ended = order.before, done.code in ENDED
        keys = {name_of(self._questions[key]): key for key in order.missing}
        names = log.read_text().splitlines()
        asked = [keys[name] for name in names if name in keys]
        self._check(len(asked) == len(names), done, "asked what has an answer")
        self.counts["questions asked"] += len(asked)
        self._check(len(asked) == len(set(asked)), done, "a question was asked twice")
        if has_ended and order.is_alone:
            self._check(set(asked) == order.missing, done, "did not ask what has no answer")
        if "--fresh" in order.words:
            if self._asides() == asides and not has_ended:  # it did not come so far
                before = self.stores.get(order.own, Store())
            for name in [name for name in self.stores if not (self.folder / name).exists()]:
                del self.stores[name]
            self._forget_notes(order.output)
        after = self._settle(done, order.own, before, asked, order.adoptable)
        if has_ended:
            answered = set(self._keys(order.rows, order.top_k)) <= after.answers.keys()
            is_left = not after.answers and order.output is not None
            self._check(answered or is_left, done, "ended without an answer to each row")
        uncommitted = sum(
            key not in after.answers or after.answers[key] == before.answers.get(key)
            for key in asked
        )
        allowed = COMMIT_ROWS if done.code not in (*ENDED, 4, 75) else 0
        self._check(uncommitted <= allowed, done, f"{uncommitted} answers were lost")
        if order.output is not None:
            self._check_output(done, order, after)
        self._check_folder(done)
        if has_ended and (end is None or end.kind != "full"):
            self._check_left(done, order.own, order.output)

    def _forget_notes(self, output: str | None) -> None:
        """A store that was moved aside takes along what it says of other outputs."""
        for name in self.outputs.keys() - {output}:
            manifest = read_manifest(Paths.of(self.folder / name))
            digest = hashlib.sha256(self.outputs[name]).hexdigest()
            is_said = manifest is not None and manifest.sha256 == digest
            if not is_said and not self._is_noted(name, self.stores.get(_store_of(name), Store())):
                self.unvouched.add(name)

    def _call(self, order: Order, end: End | None, log: Path) -> Done:
        words, environ = order.words, order.environ
        log.write_text("")
        script, fault = Script(str(log)), None
        if end is not None and end.kind in ("kill", "torn", "power", "full"):
            kind = errno.ENOSPC if end.kind == "full" else end.kind
            fault = Fault(end.at, kind, end.only)
        elif end is not None and end.kind == "asked":
            script = replace(script, die_after=1 + end.at)
        elif end is not None and end.kind == "stop":
            script = replace(script, stop_after=1 + end.at)
        running = self.commands.start(
            *words,
            folder=self.folder,
            fault=fault,
            environ=dict(environ),
            hook=HOOK,
            hook_argument=asdict(script),
        )
        if end is not None and end.kind == "time":
            time.sleep(end.at / 1000)
            running.send_signal(signal.SIGKILL)
        done = running.wait()
        shown = " ".join([*(f"{name}={value}" for name, value in environ.items()), *words])
        self.history.append(f"{shown}  # {end and tuple(end)}: {done.code}")
        self.counts["commands"] += 1
        if end is not None and done.code == -signal.SIGKILL:
            self.counts[f"kills: {end.kind}"] += 1
        if end is not None and end.kind in ("full", "stop") and done.code in (74, 75):
            self.counts[f"ended: {end.kind}"] += 1
        self._check("Traceback" not in done.output, done, "a traceback")
        return done

    def _check_code(self, done: Done, end: End | None, code: int) -> None:
        allowed = {code}
        if end is not None:
            allowed |= {"full": {73, 74}, "stop": {75}}.get(end.kind, {-signal.SIGKILL})
        self._check(done.code in allowed, done, f"expected {sorted(allowed)}")
        if done.code > 0:
            self._check("mmrag-batch: " in done.output, done, "nothing says why")

    def _asides(self) -> int:
        return sum(ASIDE.fullmatch(path.name) is not None for path in self.folder.rglob("*"))

    def _settle(
        self, done: Done, own: str, before: Store, asked: Sequence[bytes], adoptable: Answers
    ) -> Store:
        """Take note of what is committed."""
        after = Store()
        if (self.folder / own).exists():
            after = self._look(own, before, asked, adoptable, done)
            self.stores[own] = after
        else:
            self.stores.pop(own, None)
        gone = before.answers.keys() - after.answers.keys()
        self._check(not gone, done, f"{len(gone)} committed answers are gone")
        return after

    def _look(
        self, own: str, before: Store, asked: Sequence[bytes], adoptable: Answers, done: Done
    ) -> Store:
        copy = self.scratch / "store"  # as looking may roll a commit back, which the next run must
        for source, target in (
            (self.folder / own, copy),
            (journal_of(self.folder / own), journal_of(copy)),
        ):
            target.unlink(missing_ok=True)
            if source.exists():
                shutil.copyfile(source, target)
        after = Store()
        with suppress(OutputError), AnswerStore(copy) as store:  # which may hold nothing yet
            origins = {start.id: start.origin for start in store.starts()}
            for key, kept in store.scan():
                old = before.answers.get(key)
                if old is not None and old.start == kept.start:
                    after.answers[key] = old
                elif key in asked:
                    origin = origins.get(kept.start, ("", 0))
                    after.answers[key] = self._given(key, kept.start)._replace(origin=origin)
                else:
                    self._check(key in adoptable, done, "an answer from nowhere")
                    after.answers[key] = adoptable[key]._replace(start=kept.start)
            if (job := store.read_note("job")) is not None:
                after.has_table, after.limit = True, job["limit"]
                after.withholds = job["presentation"]["abstain_below"] > 0
                for top_k in (2, 3):
                    if job["settings"] == json.loads(json.dumps(settings_of(top_k))):
                        after.top_k = top_k
            notes = {name: store.read_note(f"published {name}") for name in OUTPUTS}
            after.published = {name: note["sha256"] for name, note in notes.items() if note}
        return after

    def _check_output(self, done: Done, order: Order, after: Store) -> None:
        """The output is what it was, or what one run would have written."""
        output, rows, top_k = order.output, order.rows, order.top_k
        assert output is not None
        path = self.folder / output
        before = self.outputs.get(output)
        now = path.read_bytes() if path.exists() else None
        expected = self.expected(after.answers, rows, top_k, withholds=order.withholds)
        if done.code in ENDED:
            if expected is None and not after.answers:  # it is complete, and its answers are gone
                expected = before
            self._check(now == expected, done, f"wrong output:\n{now!r}\nin place of\n{expected!r}")
            self.counts["publications compared"] += 1
        elif now != before:
            may = done.code in (-signal.SIGKILL, 73, 74) and now is not None
            self._check(may and now == expected, done, f"wrong output left behind: {now!r}")
        if now is None:
            return
        self.outputs[output] = now
        if done.code in ENDED or now != before:
            self.tampered.discard(output)
            self.unvouched.discard(output)
        manifest = read_manifest(Paths.of(path))
        digest = hashlib.sha256(now).hexdigest()
        if output not in self.tampered | self.unvouched:
            said = manifest is not None and manifest.sha256 == digest
            noted = self._is_noted(output, after)
            self._check(said or noted, done, "nothing vouches for the output")
            if done.code in ENDED:
                self._check(said, done, "the manifest is not that of the output")

    def _is_noted(self, output: str, store: Store) -> bool:
        return store.published.get(output) == hashlib.sha256(self.outputs[output]).hexdigest()

    def _check_folder(self, done: Done) -> None:
        """Nothing has changed that is not a run's, and nothing is there that is nobody's."""
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(entry.cells().values() for entry in self.entries)
        theirs = {"notes.txt": b"somebody's", "in.csv": table.getvalue().encode(), **self.images}
        for name, data in theirs.items():
            self._check((self.folder / name).read_bytes() == data, done, f"{name} was changed")
        for name, data in self.outputs.items():
            self._check((self.folder / name).read_bytes() == data, done, f"{name} was changed")
        for path in self.folder.rglob("*"):
            known = path.name in theirs or path.name in self.outputs or KNOWN.fullmatch(path.name)
            self._check(bool(known), done, f"{path.name} was left")

    def _check_left(self, done: Done, own: str, output: str | None) -> None:
        lock = output + ".lock" if output is not None else own.removesuffix(".store") + ".lock"
        for name in (lock, own + "-journal", *([SHARED + ".lock"] if own == SHARED else [])):
            self._check(not (self.folder / name).exists(), done, f"{name} was left")
        if output is not None:
            left = [path.name for path in self.folder.glob(f"{output}.*.tmp")]
            self._check(not left, done, f"{left} was left")

    def _check(self, holds: bool, done: Done, what: str) -> None:
        if not holds:
            self.counts["wrong"] += 1
            self.counts["tracebacks"] += "Traceback" in done.output
            raise WrongError(f"{what}\n{self._told()}\n{done.code}: {done.output}")

    def _told(self) -> str:
        return "\n".join(self.history)


OUTPUTS = ("out.csv", "b.csv", "c.csv")
ASIDE = re.compile(r".*\.store\.old-[0-9]+")
KNOWN = re.compile(
    r"(out|b|c)\.csv(\.manifest\.json|\.lock|\.[0-9a-f]{8}\.tmp)?|out\.csv\.shards|"
    r"(out\.csv\.store|shared\.store|[0-9]+-of-[0-9]+\.store)(\.old-[0-9]+)?(-journal)?|"
    r"((shared\.store|[0-9]+-of-[0-9]+)\.)?lock"
)


def _store_of(output: str) -> str:
    return "out.csv.store" if output == "out.csv" else SHARED


def _again(flags: Sequence[str]) -> frozenset[Status]:
    if "--retry-degraded" in flags:
        return frozenset(("error", "degraded"))
    return frozenset(("error",)) if "--retry-errors" in flags else frozenset()


def _takes(given: Given, mine: Given | None) -> bool:
    """Whether an answer of another store is taken in place of one's own."""
    if mine is not None and given.origin[0] and given.origin[0] == mine.origin[0]:
        return given.origin[1] > mine.origin[1]
    return mine is None or _rank(given) < _rank(mine)


def _rank(given: Given) -> int:
    return STATUSES.index(given.answer.status)
