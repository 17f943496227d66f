"""A table as the towers see it: the frozen embeddings of every question and document.

The encoders run once. Equal contents share one row of a file that is mapped, not loaded, so a
million documents take little memory: what a batch reads is all that must be there.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mmrag_batch.errors import InputError
from mmrag_batch.progress import Progress
from mmrag_batch.records import Row
from mmrag_batch.retrieval.embedder import EmbeddedRow, Embedder, Embedding
from mmrag_batch.retrieval.preprocess import Floats
from mmrag_batch.stages import in_batches

WINDOW = 256
"""Rows embedded together."""

Supervision = Callable[[Row], Mapping[str, float]]
"""What a row teaches: how much each of its documents helps, by id; 0 where it is not named, nan
where it is not known. Nothing where it is empty."""


@dataclass(frozen=True, slots=True)
class EmbeddedTable:
    """Q questions with a document that helps, and their N candidate documents.

    `vectors` (M, D): embeddings, the first one zeros. `questions` (Q, 2) and `documents` (N, 2):
    the row in `vectors` of an image's and a text's embedding, 0 where absent. `counts` (Q,): how
    many documents, which follow each other, a question has. `shares` (N,): how much a document
    helps, summing to 1 over those of a question; nan where that is not known. `numbers` (Q,): which
    rows of the table these are.
    """

    vectors: Floats
    questions: Tensor
    documents: Tensor
    counts: Tensor
    shares: Tensor
    numbers: Tensor

    @property
    def owner(self) -> Tensor:
        """(N,): the question that a document is a candidate of, ascending; -1 for none."""
        owner = torch.repeat_interleave(torch.arange(len(self.counts)), self.counts)
        return F.pad(owner, (0, len(self.documents) - len(owner)), value=-1)

    @property
    def relevant(self) -> Tensor:
        """(N,) bool: the documents that help their question most."""
        owner = self.owner
        shares = self.shares.nan_to_num(-1)
        max_shares = torch.zeros(len(self.counts)).scatter_reduce_(0, owner, shares, "amax")
        return shares >= max_shares[owner]

    @property
    def excluded(self) -> Tensor:
        """(Q, N) bool: documents that are no negatives of a question, and none of its own that
        help: those of which nothing is known, and what has the contents of one that helps it, or
        may help. Equal questions count as one."""
        owner, is_unknown = self.owner, self.shares.isnan()
        questions, contents = (
            torch.unique(self.contents(sides), return_inverse=True)[1]
            for sides in (self.questions, self.documents)
        )
        may_help = (owner >= 0) & (self.shares != 0)  # nan is not 0
        helped = torch.zeros(len(questions), len(contents), dtype=torch.bool)
        helped[questions[owner[may_help]], contents[may_help]] = True
        own_mask = owner == torch.arange(len(questions))[:, None]
        return is_unknown | (helped[questions][:, contents] & ~(own_mask & (self.shares > 0)))

    def contents(self, sides: Tensor) -> Tensor:
        """(B,): a number for what `questions` or `documents` (B, 2) have; equal for equal ones."""
        return sides[:, 0] * len(self.vectors) + sides[:, 1]

    def take(self, indices: Tensor) -> "EmbeddedTable":
        """The questions at `indices`, in that order, with their documents."""
        counts = self.counts[indices]
        starts = self.counts.cumsum(0)[indices] - counts
        offsets = torch.arange(int(counts.sum())) - torch.repeat_interleave(
            counts.cumsum(0) - counts, counts
        )
        document_indices = torch.repeat_interleave(starts, counts) + offsets
        return EmbeddedTable(
            vectors=self.vectors,
            questions=self.questions[indices],
            documents=self.documents[document_indices],
            counts=counts,
            shares=self.shares[document_indices],
            numbers=self.numbers[indices],
        )

    def with_documents(self, extra_documents: Tensor) -> "EmbeddedTable":
        """The same with documents (K, 2) after its own that no question has."""
        return EmbeddedTable(
            vectors=self.vectors,
            questions=self.questions,
            documents=torch.cat([self.documents, extra_documents]),
            counts=self.counts,
            shares=torch.cat([self.shares, torch.zeros(len(extra_documents))]),
            numbers=self.numbers,
        )

    def embeddings(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of `questions` or `documents` (B, 2) -> embeddings (B, 2, D), zeros where absent,
        and which are present (B, 2), as 0 or 1."""
        return torch.from_numpy(self.vectors[rows.numpy()]), (rows > 0).float()


class VectorFile:
    """Different vectors (D,), one after another in a file; the first is zeros."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._rows: dict[bytes, int] = {}

    def row(self, vector: Floats) -> int:
        """Where a vector lies; it is added if it is new."""
        if not self._rows:
            self._append(np.zeros_like(vector))
        data = vector.tobytes()
        row = self._rows.get(hashlib.blake2b(data, digest_size=16).digest())
        return self._append(vector) if row is None else row

    def _append(self, vector: Floats) -> int:
        data = np.ascontiguousarray(vector, np.float32).tobytes()
        self._file.write(data)
        row = len(self._rows)
        self._rows[hashlib.blake2b(data, digest_size=16).digest()] = row
        return row

    def map(self, size: int) -> Floats:
        """All of them (M, D), mapped: they stay when the file is closed."""
        self._file.flush()
        return np.memmap(self._file, np.float32, "c", shape=(len(self._rows), size))


def embed_table(
    rows: Iterable[Row],
    embedder: Embedder,
    supervise: Supervision,
    directory: Path | None = None,
    *,
    total: int | None = None,
) -> EmbeddedTable:
    """Embed every row that teaches something; broken documents are left out. `total`: how many rows
    there are, for who waits.

    The mapped file lies in `directory` and has no name. Raises InputError where no row teaches
    anything.
    """
    with TemporaryFile(dir=directory) as stream, Progress("Embedding", total, "rows") as progress:
        return _embed(rows, embedder, supervise, VectorFile(stream), progress)


def _embed(
    rows: Iterable[Row],
    embedder: Embedder,
    supervise: Supervision,
    file: VectorFile,
    progress: Progress,
) -> EmbeddedTable:
    questions: list[tuple[int, int]] = []
    documents: list[tuple[int, int]] = []
    counts: list[int] = []
    shares: list[float] = []
    numbers: list[int] = []
    size = 0
    for window in in_batches(rows, WINDOW):
        supervised = [
            (row, relevance) for row in window if row.question and (relevance := supervise(row))
        ]
        embedded = embedder.embed([row for row, _ in supervised])
        for (row, relevance), item in zip(supervised, embedded):
            if item is None or not (candidate_shares := _shares(item, relevance)):
                continue
            size = item.question.modalities.shape[1]
            questions.append(_rows(file, item.question))
            documents += [_rows(file, candidate) for candidate, _ in candidate_shares]
            counts.append(len(candidate_shares))
            shares += [share for _, share in candidate_shares]
            numbers.append(row.number)
        progress.advance(len(window))
    if not questions:
        raise InputError(
            "No row has a readable document that is known to help: nothing to learn. Fill "
            "`relevant`, or set another `supervision`."
        )
    return EmbeddedTable(
        file.map(size),
        torch.tensor(questions),
        torch.tensor(documents),
        torch.tensor(counts),
        torch.tensor(shares),
        torch.tensor(numbers),
    )


def _shares(item: EmbeddedRow, relevance: Mapping[str, float]) -> list[tuple[Embedding, float]]:
    """The readable documents with how much they help, summing to 1, nan where that is not known;
    empty where none does."""
    shares = [(c, relevance.get(d.id, 0.0)) for c, d in zip(item.candidates, item.documents)]
    total = math.fsum(share for _, share in shares if not math.isnan(share))
    return [(candidate, share / total) for candidate, share in shares] if total > 0 else []


def _rows(file: VectorFile, embedding: Embedding) -> tuple[int, int]:
    image, text = (
        file.row(vector) if present else 0
        for vector, present in zip(embedding.modalities, embedding.present)
    )
    return image, text
