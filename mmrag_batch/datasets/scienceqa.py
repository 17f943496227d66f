"""ScienceQA (Lu 2022, github.com/lupantech/ScienceQA): `problems.json`, and pictures under
`images/SPLIT/ID/image.png` or `SPLIT/ID/image.png`.

The hint that belongs to a question and the lecture behind it are its documents, both relevant; the
written solution is none, as it says the answer.
"""

from collections.abc import Iterator
from pathlib import Path

from mmrag_batch.datasets.dataset import Cells, Pictures, read_json

KEPT = ("task", "grade", "subject", "topic", "category", "skill")


def read(directory: Path, pictures: Pictures) -> Iterator[Cells]:
    """A row for each problem, in the file's order."""
    file = directory / "problems.json"
    if not file.is_file():
        file = directory / "data" / "scienceqa" / "problems.json"  # as the repository has it
    root = directory / "images" if (directory / "images").is_dir() else file.parent
    for name, problem in read_json(file).items():
        split, choices = problem["split"], problem["choices"]
        texts = {part: problem.get(part, "").strip() for part in ("hint", "lecture")}
        image = problem.get("image")
        answer = problem.get("answer")
        yield {
            "id": name,
            "question_text": problem["question"],
            "question_image": pictures.of_file(root / split / name / image) if image else None,
            "answer_choices": choices,
            "documents": [{"id": part, "text": text} for part, text in texts.items() if text],
            "relevant": [part for part, text in texts.items() if text],
            "label": None if answer is None else choices[answer],
            "split": split,
            **{key: problem.get(key) for key in KEPT},
        }
