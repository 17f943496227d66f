"""A table as the towers see it: the frozen embeddings of every question and document.

The encoders run once; training reads arrays.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from mmrag_batch.errors import InputError
from mmrag_batch.records import Row
from mmrag_batch.retrieval.embedder import Embedder, Embedding

WINDOW = 256
"""Rows embedded together."""


@dataclass(frozen=True, slots=True)
class EmbeddedTable:
    """Q questions with at least one relevant document, and their N candidate documents.

    `questions` (Q, 2, D) and `documents` (N, 2, D): image and text embeddings, zeros where absent;
    `*_present` (Q, 2) and (N, 2): 1 where present; `owner` (N,): the question that a document is a
    candidate of, ascending; `relevant` (N,) bool.
    """

    questions: Tensor
    questions_present: Tensor
    documents: Tensor
    documents_present: Tensor
    owner: Tensor
    relevant: Tensor

    def take(self, chosen: Tensor) -> "EmbeddedTable":
        """The questions at the indices `chosen`, in that order, with their documents."""
        counts = torch.bincount(self.owner, minlength=len(self.questions))
        documents = torch.split(torch.arange(len(self.owner)), counts.tolist())
        kept = torch.cat([documents[question] for question in chosen.tolist()])
        return EmbeddedTable(
            questions=self.questions[chosen],
            questions_present=self.questions_present[chosen],
            documents=self.documents[kept],
            documents_present=self.documents_present[kept],
            owner=torch.repeat_interleave(torch.arange(len(chosen)), counts[chosen]),
            relevant=self.relevant[kept],
        )


def embed_table(rows: Iterable[Row], embedder: Embedder) -> EmbeddedTable:
    """Embed every row that has a relevant document; broken documents are left out.

    Raises InputError where there is no such row.
    """
    questions: list[Embedding] = []
    documents: list[Embedding] = []
    owner: list[int] = []
    relevant: list[bool] = []
    source = iter(rows)
    while window := list(islice(source, WINDOW)):
        for row, embedded in zip(window, embedder.embed(window)):
            if embedded is None or row.question is None or not row.question.relevant:
                continue
            helps = [document.id in row.question.relevant for document in embedded.documents]
            if any(helps):
                owner += [len(questions)] * len(helps)
                relevant += helps
                questions.append(embedded.question)
                documents += embedded.candidates
    if not questions:
        raise InputError("No row has a readable document that `relevant` names: nothing to learn.")
    return EmbeddedTable(
        *_stack(questions), *_stack(documents), torch.tensor(owner), torch.tensor(relevant)
    )


def _stack(embeddings: Sequence[Embedding]) -> tuple[Tensor, Tensor]:
    """(N, 2, D) embeddings and (N, 2) presence."""
    return (
        torch.from_numpy(np.stack([item.modalities for item in embeddings])),
        torch.from_numpy(np.stack([item.present for item in embeddings])),
    )
