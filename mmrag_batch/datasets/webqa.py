"""WebQA (Chang 2022, github.com/WebQnA/WebQA): `WebQA_train_val.json`, `WebQA_test.json`, and the
pictures in `imgs.tsv`, base64 a line, found by the offsets in `imgs.lineidx`.

The facts are a question's documents, snippets of text and pictures with their titles; those that
answer it are relevant. Answers are in free form.
"""

import base64
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mmrag_batch.datasets.dataset import Cells, Pictures, read_json
from mmrag_batch.errors import InputError, MissingError

FACTS = (
    "txt_posFacts",
    "img_posFacts",
    "txt_negFacts",
    "img_negFacts",
    "txt_Facts",  # of the test split, where it is not said which of them help
    "img_Facts",
)
LINES = 10_000_000
"""A picture's number is that of its line, past a multiple of this."""


def read(directory: Path, pictures: Pictures) -> Iterator[Cells]:
    """The rows of the files that are there."""
    files = [directory / name for name in ("WebQA_train_val.json", "WebQA_test.json")]
    if not any(file.is_file() for file in files):
        raise MissingError(f"{directory} holds no WebQA_train_val.json and no WebQA_test.json.")
    tsv, index = directory / "imgs.tsv", directory / "imgs.lineidx"
    if not (tsv.is_file() and index.is_file()):
        raise MissingError(f"{directory} holds no imgs.tsv or no imgs.lineidx: the pictures.")
    offsets = [int(line) for line in index.read_text(encoding="utf-8").split()]
    with tsv.open("rb") as stream:

        def picture(image_id: int) -> str:
            line = image_id % LINES
            if line >= len(offsets):
                raise InputError(f"{index} has no line {line + 1}, of picture {image_id}.")
            stream.seek(offsets[line])
            name, _, data = stream.readline().rstrip().partition(b"\t")
            if int(name) != image_id:
                raise InputError(f"{tsv}: picture {image_id} is not at byte {offsets[line]}.")
            return pictures.of_bytes(base64.b64decode(data))

        for file in filter(Path.is_file, files):
            for name, item in read_json(file).items():
                yield _row(name, item, picture)


def _row(name: str, item: Mapping[str, Any], picture: Callable[[int], str]) -> Cells:
    facts = [(kind, _document(fact, picture)) for kind in FACTS for fact in item.get(kind, ())]
    return {
        "id": name,
        "question_text": item["Q"].strip('"'),
        "documents": [document for _, document in facts],
        "relevant": [document["id"] for kind, document in facts if "pos" in kind] or None,
        "label": [text.strip('"') for text in item.get("A", ())] or None,
        "split": item.get("split", "test"),
        "category": item.get("Qcate"),
        "topic": item.get("Topic"),
    }


def _document(fact: Mapping[str, Any], picture: Callable[[int], str]) -> dict[str, str]:
    if "image_id" in fact:
        number = int(fact["image_id"])
        return {"id": str(number), "image": picture(number), "text": fact["title"]}
    return {"id": str(fact["snippet_id"]), "text": f"{fact['title']}: {fact['fact']}"}
