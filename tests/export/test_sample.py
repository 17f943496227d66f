from pathlib import Path

import pytest
from PIL import Image

from mmrag_batch.bundle import read_retriever_spec
from mmrag_batch.errors import InputError
from mmrag_batch.export.encoders import open_encoders
from mmrag_batch.export.sample import PICTURES, TEXTS, Contents, compare, read_sample

CUBE = Image.new("RGB", (40, 30), "red")


def test_without_a_sample_contents_are_drawn() -> None:
    contents = read_sample(None)
    assert (len(contents.pictures), len(contents.texts)) == (PICTURES, TEXTS)
    assert len({picture.tobytes() for picture in contents.pictures}) == PICTURES
    assert contents.texts == read_sample(None).texts


def test_a_folder_gives_its_pictures(tmp_path: Path) -> None:
    CUBE.save(tmp_path / "b.png")
    CUBE.convert("L").save(tmp_path / "a.png")
    (tmp_path / "notes.txt").write_text("no picture")
    contents = read_sample(tmp_path)
    assert [picture.mode for picture in contents.pictures] == ["RGB", "RGB"]
    assert contents.pictures[1].tobytes() == CUBE.tobytes()
    assert len(contents.texts) == TEXTS


def test_a_table_gives_what_its_rows_hold(tmp_path: Path) -> None:
    CUBE.save(tmp_path / "cube.png")
    table = tmp_path / "in.csv"
    table.write_text(
        "question_text,question_image,documents\n"
        'What?,cube.png,"[""A text."", ""gone.png"", ""cube.png""]"\n'
        'What?,,"[""Another.""]"\n'
    )
    contents = read_sample(table)
    assert contents.texts == ["What?", "A text.", "Another."]
    assert len(contents.pictures) == 1


def test_a_sample_with_nothing_in_it_is_refused(tmp_path: Path) -> None:
    table = tmp_path / "in.csv"
    table.write_text("question_text\n")
    with pytest.raises(InputError, match="no picture and no text"):
        read_sample(table)


@pytest.mark.parametrize(
    ("contents", "figures"),
    [
        (Contents([CUBE], []), {"image_cosine"}),
        (Contents([], [f"text {n}" for n in range(6)]), {"text_cosine", "top_5_agreement"}),
    ],
)
def test_one_modality_is_compared_alone(
    tiny_encoders_dir: Path, tiny_retriever_dir: Path, contents: Contents, figures: set[str]
) -> None:
    spec = read_retriever_spec(tiny_retriever_dir)
    found = compare(open_encoders(tiny_encoders_dir), tiny_retriever_dir, spec, contents)
    assert set(found) == figures
    assert all(figure > 0.9999 for figure in found.values())
