"""Write easy-VQA as tables for mmrag-batch: python easy_vqa.py DATA OUT

DATA is the folder `easy_vqa/data` of the package of that name. OUT gets `train.csv`, `test.csv` and
the pictures. Each question comes in one of two ways, which the column `kind` names: `shown`, with
its picture, or `found`, with eight pictures of which it names the right one by its caption. To
learn from, each question comes in one way, at random; of the test questions, each in both.
"""

import csv
import json
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

PLACES = (
    "Accra Bergen Cairo Delhi Dublin Graz Hanoi Izmir Jaipur Kyoto Lagos Lima Lyon Malmo Nairobi "
    "Oslo Porto Quito Riga Seoul Tunis Turin Utrecht Zagreb"
).split()
MONTHS = (
    "January February March April May June July August September October November December"
).split()
CAPTIONS = [f"{place} in {month}" for place in PLACES for month in MONTHS]
CANDIDATES = 8
HEADER = ("kind", "question_text", "question_image", "answer_choices", "documents", "relevant")


def main(data: Path, out: Path) -> None:
    choices = json.dumps((data / "answers.txt").read_text().split())
    for split in ("train", "test"):
        shutil.copytree(data / split / "images", out / split, dirs_exist_ok=True)
        with open(out / f"{split}.csv", "w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow((*HEADER, "label"))
            for kind, text, image, documents, relevant, answer in rows(data, split):
                writer.writerow((kind, text, image, choices, documents, relevant, answer))


def rows(data: Path, split: str) -> Iterator[tuple[str, str, str, str, str, str]]:
    """The rows of a split: kind, question, its picture, documents, which of them helps, answer."""
    draw = random.Random(f"easy-VQA {split}")
    questions = json.loads((data / split / "questions.json").read_text())
    pictures = sorted({picture for _, _, picture in questions})
    draw.shuffle(pictures)
    album: dict[int, dict[int, str]] = {}  # of each picture: the eight it stands among, captioned
    for start in range(0, len(pictures), CANDIDATES):
        members = pictures[start : start + CANDIDATES]
        captions = dict(zip(members, draw.sample(CAPTIONS, len(members)), strict=True))
        album |= dict.fromkeys(members, captions)
    for text, answer, picture in questions:
        kinds = ["shown", "found"] if split == "test" else [draw.choice(["shown", "found"])]
        if "shown" in kinds:
            yield "shown", text, f"{split}/{picture}.png", "", "", answer
        if "found" in kinds:
            captions = album[picture]
            documents = [
                {"id": str(member), "image": f"{split}/{member}.png", "text": captions[member]}
                for member in draw.sample(sorted(captions), len(captions))
            ]
            named = f"In the picture from {captions[picture]}, {text}"
            yield "found", named, "", json.dumps(documents), json.dumps([str(picture)]), answer


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
