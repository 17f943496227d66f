from pathlib import Path

import pytest

from mmrag_batch.errors import ConfigError
from mmrag_batch.hub.names import Name, parse_name, shown, title
from mmrag_batch.settings import load_predict_settings

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("hf:owner/name", Name("owner/name", "main")),
        ("hf:owner/name@v1.0", Name("owner/name", "v1.0")),
        ("hf:owner/name@refs/pr/1", Name("owner/name", "refs/pr/1")),
        (f"hf:o-1/n.2_b@{COMMIT}", Name("o-1/n.2_b", COMMIT)),
        ("hf://owner/name", Name("owner/name", "main")),
        ("owner/name", None),
        ("models/hf:owner", None),
    ],
)
def test_a_name_of_the_hub_is_told_from_a_folder(text: str, name: Name | None) -> None:
    assert parse_name(Path(text)) == name


@pytest.mark.parametrize("text", ["hf:", "hf:name", "hf:a/b/c", "hf:a/b@", "hf:a b/c"])
def test_what_begins_as_a_name_and_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=f"{text} names no model of the hub; expected hf:owner"):
        parse_name(Path(text))


def test_a_folder_of_the_cache_is_shown_by_its_name_and_commit() -> None:
    snapshot = Path(f"cache/hub/models--my-team--a--model.v2/snapshots/{COMMIT}")
    name = f"hf:my-team/a--model.v2@{COMMIT}"
    assert shown(snapshot) == shown(snapshot / "generator") == name
    assert parse_name(Path(name)) == Name("my-team/a--model.v2", COMMIT)
    assert title(snapshot) == "a--model.v2"
    for other in (snapshot / "config.json", snapshot.parent, Path("models/mine")):
        assert shown(other) == str(other)
    assert title(Path("models/mine")) == "mine"


@pytest.mark.parametrize("source", ["flag", "variable", "file"])
def test_predict_takes_no_name_of_the_hub(source: str, tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('[predict]\nbundle = "hf:owner/name"\n' if source == "file" else "")
    with pytest.raises(ConfigError, match=r"a folder here, not on the hub .*`hf download`"):
        load_predict_settings(
            Path("in.csv"),
            Path("out.csv"),
            {"bundle": Path("hf:owner/name")} if source == "flag" else {},
            environ={"MMRAG_BUNDLE": "hf:owner/name"} if source == "variable" else {},
            config_file=file,
        )
