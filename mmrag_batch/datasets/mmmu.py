"""MMMU (Yue 2024, huggingface.co/datasets/MMMU/MMMU): a folder of Parquet files for each subject,
the split in the name of each.

The first picture is the question's, the others are documents, all of them relevant. Open questions
have no choices, and perhaps several right answers.
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from mmrag_batch.datasets.dataset import Cells, Pictures, read_parquet, split_of

PICTURES = range(1, 8)
KEPT = ("question_type", "subfield", "topic_difficulty", "img_type")


def read(directory: Path, pictures: Pictures) -> Iterator[Cells]:
    """The rows of every subject and split that is there."""
    for file, cells in read_parquet(directory):
        options = _literal(cells["options"]) or []
        images = [
            (number, pictures.of_bytes(image["bytes"]))
            for number in PICTURES
            if (image := cells.get(f"image_{number}"))
        ]
        others = [(f"image {number}", source) for number, source in images[1:]]
        answer = cells["answer"]
        yield {
            "id": cells["id"],
            "question_text": cells["question"],
            "question_image": images[0][1] if images else None,
            "answer_choices": options,
            "documents": [{"id": name, "image": source} for name, source in others],
            "relevant": [name for name, _ in others],
            "label": _label(answer, options),
            "split": split_of(file),
            **{key: cells.get(key) for key in KEPT},
        }


def _label(answer: str, options: list[str]) -> object:
    """The text of the option that a letter names, or the right answers; test rows have `?`."""
    if answer in ("", "?", None):
        return None
    return options[ascii_uppercase.index(answer)] if options else _literal(answer)


def _literal(text: Any) -> Any:
    """The list that a text writes as Python does, or what it is."""
    if isinstance(text, str) and text.startswith("["):
        return ast.literal_eval(text)
    return text
