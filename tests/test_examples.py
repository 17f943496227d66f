"""The scripts in examples/ that write tables, on data laid out as they are told to find it."""

import json
import subprocess
import sys
from pathlib import Path

from PIL import Image

from mmrag_batch.images.loader import ImageLoader
from mmrag_batch.table.truth import read_labelled_rows

SCRIPT = Path(__file__).parent.parent / "examples" / "easy_vqa.py"
ANSWERS = ("circle", "red", "yes", "no")


def test_easy_vqa_becomes_tables_of_shown_and_of_found_pictures(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    asked = [("what color is the shape?", "red"), ("is there a circle?", "yes")]
    for split in ("train", "test"):
        (data / split / "images").mkdir(parents=True)
        for picture in range(16):
            Image.new("RGB", (64, 64)).save(data / split / "images" / f"{picture}.png")
        questions = [[*pair, picture] for picture in range(16) for pair in asked]
        (data / split / "questions.json").write_text(json.dumps(questions))
    (data / "answers.txt").write_text("\n".join(ANSWERS))

    subprocess.run([sys.executable, SCRIPT, data, out], check=True)

    learnt, tested = (list(read_labelled_rows(out / f"{s}.csv")) for s in ("train", "test"))
    assert (len(learnt), len(tested)) == (32, 64)
    images, found = ImageLoader(out), 0
    for row in [*learnt, *tested]:
        question = row.question
        assert question is not None
        assert row.error is None
        assert question.choices == ANSWERS
        assert question.label in (1, 2)
        if question.image is not None:
            assert not question.documents
            assert images.load(question.image).size == (64, 64)
            continue
        found += 1
        captions = {document.id: document.text for document in question.documents}
        assert len(set(captions.values())) == 8
        assert question.relevant is not None
        (helps,) = question.relevant
        assert f"the picture from {captions[helps]}, " in question.text
    assert 32 < found < 64
