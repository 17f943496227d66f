"""A-OKVQA (Schwenk 2022, github.com/allenai/aokvqa): `aokvqa_v1p0_SPLIT.json`, and the pictures of
COCO 2017 under `coco/SPLIT2017/` or `SPLIT2017/`.

Its rationales say the answer, so they are a column and no documents. `answers` are those of ten
people.
"""

from collections.abc import Iterator
from pathlib import Path

from mmrag_batch.datasets.dataset import Cells, Pictures, read_json
from mmrag_batch.errors import MissingError


def read(directory: Path, pictures: Pictures) -> Iterator[Cells]:
    """The rows of every split that is there."""
    files = sorted(directory.rglob("aokvqa_v1p0_*.json"))
    files = [file for file in files if file.stem.rpartition("_")[2] in {"train", "val", "test"}]
    if not files:
        raise MissingError(f"{directory} holds no aokvqa_v1p0_train.json, _val.json or _test.json.")
    for file in files:
        split = file.stem.rpartition("_")[2]
        folders = (directory / "coco" / f"{split}2017", directory / f"{split}2017")
        folder = next((one for one in folders if one.is_dir()), folders[0])
        for item in read_json(file):
            choices, right = item["choices"], item.get("correct_choice_idx")
            image = folder / f"{item['image_id']:012}.jpg"
            yield {
                "id": item["question_id"],
                "question_text": item["question"],
                "question_image": pictures.of_file(image),
                "answer_choices": choices,
                "label": None if right is None else choices[right],
                "answers": item.get("direct_answers"),
                "split": split,
                "rationales": item.get("rationales"),
            }
