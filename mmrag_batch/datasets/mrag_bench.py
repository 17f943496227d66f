"""MRAG-Bench (Hu 2025, huggingface.co/datasets/uclanlp/MRAG-Bench): Parquet files, four choices,
the pictures that help (`gt_images`) and those that a retriever found (`retrieved_images`).

Both are a question's documents, each picture once; those that help are the relevant ones.
"""

from collections.abc import Iterator
from pathlib import Path

from mmrag_batch.datasets.dataset import Cells, Pictures, read_parquet, split_of

KEPT = ("scenario", "aspect", "image_type", "source")


def read(directory: Path, pictures: Pictures) -> Iterator[Cells]:
    """The rows of every file that is there."""
    for file, cells in read_parquet(directory):
        helping, retrieved = (
            [pictures.of_bytes(image["bytes"]) for image in cells.get(name) or []]
            for name in ("gt_images", "retrieved_images")
        )
        sources = list(dict.fromkeys([*helping, *retrieved]))
        yield {
            "id": str(cells["id"]),
            "question_text": cells["question"],
            "question_image": pictures.of_bytes(cells["image"]["bytes"]),
            "answer_choices": [cells[letter] for letter in "ABCD"],
            "documents": [
                {"id": str(number), "image": source} for number, source in enumerate(sources)
            ],
            "relevant": [str(sources.index(source)) for source in dict.fromkeys(helping)],
            "label": cells[cells["answer_choice"]],
            "split": split_of(file),
            **{key: cells.get(key) for key in KEPT},
        }
