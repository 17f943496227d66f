import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mmrag_batch import settings as settings_module
from mmrag_batch.declare import NUMBER, SWITCH, setting, settings_of
from mmrag_batch.errors import ConfigError, MissingError
from mmrag_batch.run.plan import find_answer_settings, options_of
from mmrag_batch.settings import (
    DEMO_BUNDLE,
    PredictSettings,
    flags,
    load_predict_settings,
)
from tests import settings_page


def load(
    flags: dict[str, object] | None = None,
    environ: dict[str, str] | None = None,
    config_file: Path | None = None,
) -> PredictSettings:
    return load_predict_settings(
        Path("in.csv"), Path("out.csv"), flags or {}, environ=environ or {}, config_file=config_file
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "settings.toml"


def test_nothing_given_is_the_demo_bundle_and_what_it_was_trained_with() -> None:
    settings = load()
    assert settings.input == Path("in.csv")
    assert settings.output == Path("out.csv")
    assert settings.bundle == DEMO_BUNDLE
    assert DEMO_BUNDLE.parts[-2:] == ("mmrag_batch", "demo_bundle")
    assert settings.engine == settings.device == "auto"
    optional = (settings.top_k, settings.max_images, settings.limit, settings.image_root)
    assert optional == (None, None, None, None)


def test_a_flag_beats_a_variable_beats_a_file_beats_a_default(file: Path) -> None:
    file.write_text("[predict]\ntop_k = 1\nbatch_size = 1\nmax_new_tokens = 1\n")
    environ = {"MMRAG_TOP_K": "2", "MMRAG_BATCH_SIZE": "2"}
    settings = load({"top_k": 3, "batch_size": None}, environ, file)
    assert (settings.top_k, settings.batch_size, settings.max_new_tokens) == (3, 2, 1)
    assert settings.limit is None


def test_paths_and_words_come_from_every_source(file: Path) -> None:
    file.write_text('[predict]\nbundle = "models/b"\nengine = "scripted"\noverwrite = true\n')
    settings = load({"image_root": Path("pictures")}, {"MMRAG_DEVICE": "cpu"}, file)
    assert settings.bundle == Path("models/b")
    assert settings.image_root == Path("pictures")
    assert (settings.engine, settings.device, settings.overwrite) == ("scripted", "cpu", True)


@pytest.mark.parametrize(
    ("text", "value"), [("1", True), ("TRUE", True), ("yes", True), ("0", False), ("off", False)]
)
def test_a_switch_can_be_a_variable(text: str, value: bool) -> None:
    assert load(environ={"MMRAG_QUIET": text}).quiet is value


def test_a_flag_can_turn_a_switch_off() -> None:
    assert load({"quiet": False}, {"MMRAG_QUIET": "1"}).quiet is False


def test_an_empty_variable_and_those_of_others_are_not_given() -> None:
    assert load(environ={"MMRAG_TOP_K": "", "MMRAG_HOME": "/", "XMMRAG_TOP_K": "x"}) == load()


def test_every_problem_is_reported_at_once_with_its_origin(file: Path) -> None:
    file.write_text(
        'stray = 1\n[predict]\nbatchsize = 4\nbatch_size = "4"\nlimit = true\ndevice = "gpu"\n'
    )
    environ = {"MMRAG_TOP_K": "many", "MMRAG_QUIET": "maybe", "MMRAG_BATCHSIZE": "4"}
    with pytest.raises(ConfigError) as caught:
        load({"max_images": 0}, environ, file)
    lines = str(caught.value).splitlines()
    assert len(lines) == 9
    for origin, message in [
        (f"{file}, stray", "no such setting"),
        (f"{file}, [predict] batchsize", "did you mean 'batch_size'?"),
        (f"{file}, [predict] batch_size", "not '4'"),
        (f"{file}, [predict] limit", "not True"),
        (f"{file}, [predict] device", "one of auto, cpu, cuda, not 'gpu'"),
        ("MMRAG_TOP_K", "a whole number from 0 to 100, not 'many'"),
        ("MMRAG_QUIET", "true or false, not 'maybe'"),
        ("MMRAG_BATCHSIZE", "did you mean 'batch_size'?"),
        ("--max-images", "a whole number from 1 to 100, not 0"),
    ]:
        assert any(line.startswith(origin) and message in line for line in lines), origin


def test_a_wrong_value_is_reported_even_where_a_flag_overrides_it() -> None:
    with pytest.raises(ConfigError, match="MMRAG_TOP_K"):
        load({"top_k": 3}, {"MMRAG_TOP_K": "x"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("top_k", -1),
        ("top_k", 101),
        ("batch_size", 0),
        ("batch_size", True),
        ("max_new_tokens", 0),
        ("limit", 0),
        ("limit", 2.0),
        ("device", "gpu"),
        ("engine", "vllm, please"),
        ("dtype", "int8"),
        ("engine_rows", 0),
        ("engine_tokens", 1),
        ("kv_cache_gib", 0),
        ("endpoint", "localhost:8000"),
        ("quiet", 1),
        ("bundle", 1),
    ],
)
def test_a_value_that_makes_no_sense_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^--{name.replace('_', '-')}: expected"):
        load({name: value})


def test_a_config_file_that_is_not_there_is_named(file: Path) -> None:
    with pytest.raises(MissingError, match=r"--config: there is no file .*settings\.toml"):
        load(config_file=file)


@pytest.mark.parametrize("content", [b"[predict", b"\xff\xfe", b"a = 1\na = 2\n"])
def test_a_config_file_that_is_no_toml_is_refused(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(ConfigError, match="cannot be read"):
        load(config_file=file)


@pytest.mark.parametrize(("text", "kept"), [("20", "20"), ("0.05", "0.05"), ('"20"', "20")])
def test_a_number_of_errors_may_stand_in_a_file_as_one(file: Path, text: str, kept: str) -> None:
    file.write_text(f"[predict]\nmax_row_errors = {text}\n")
    assert load(config_file=file).max_row_errors == kept


def test_every_setting_is_a_flag_with_its_help_and_what_its_default_stands_for() -> None:
    known = {flag.name: flag for flag in flags(PredictSettings)}
    assert known.keys() == settings_of(PredictSettings).keys()
    assert known["top_k"].declarations == ("--top-k",)
    assert known["quiet"].declarations == ("--quiet/--no-quiet", "-q")
    assert known["top_k"].help == "Documents kept a question.  [default: the bundle's]"
    assert known["grace"].help.endswith("[default: 30]")
    assert known["limit"].help == "Answer only the first rows."
    words = "auto, vllm, transformers, server"
    assert words in known["engine"].help


@dataclass(frozen=True, slots=True)
class Toy(PredictSettings):
    """What somebody adds to the settings of `predict`."""

    shout: bool = setting(SWITCH, False, "In capitals.", changes_answers=True)
    volume: float = setting(NUMBER, 0.5, "How loud.", repeated=True)


def load_toy(
    flags: dict[str, object] | None = None,
    environ: dict[str, str] | None = None,
    config_file: Path | None = None,
) -> Toy:
    files = (Path("in.csv"), Path("out.csv"))
    found = load_predict_settings(
        *files, flags or {}, environ=environ or {}, config_file=config_file, kind=Toy
    )
    assert isinstance(found, Toy)
    return found


def test_one_declaration_is_a_flag_a_variable_and_a_line_of_a_file(file: Path) -> None:
    assert [flag.declarations for flag in flags(Toy)][-2:] == [
        ("--shout/--no-shout",),
        ("--volume",),
    ]
    assert load_toy({"shout": True}).shout is True
    assert load_toy(environ={"MMRAG_SHOUT": "yes", "MMRAG_VOLUME": "0.25"}).volume == 0.25
    file.write_text("[predict]\nshout = true\ntop_k = 2\n")
    found = load_toy({"top_k": 3}, config_file=file)
    assert (found.shout, found.top_k, found.volume) == (True, 3, 0.5)
    with pytest.raises(ConfigError, match="MMRAG_SHOUT: expected true or false, not 'loudly'"):
        load_toy(environ={"MMRAG_SHOUT": "loudly"})
    with pytest.raises(ConfigError, match="no such setting"):
        load({"shout": True})


def test_a_declaration_that_changes_answers_enters_their_key_and_the_next_command() -> None:
    loud = load_toy({"shout": True})
    assert find_answer_settings(loud) == {**find_answer_settings(load()), "shout": True}
    assert options_of(loud) == ("--shout",)
    assert options_of(load_toy({"volume": 1, "quiet": True, "top_k": 2})) == (
        *("--top-k", "2"),
        *("--volume", "1.0"),
    )
    assert options_of(load_toy()) == ()


def test_the_next_command_repeats_what_holds_for_the_whole_of_an_output() -> None:
    once = {name for name, one in settings_of(PredictSettings).items() if not one.repeated}
    assert once == {
        *("shard", "store", "overwrite", "fresh", "quiet", "verbose", "if_locked"),
        "metrics_file",
        *("retry_errors", "retry_degraded", "verify_inputs"),
        *("max_row_errors", "max_runtime", "row_timeout", "grace"),
    }


@pytest.mark.parametrize("page", settings_page.PAGES)
def test_the_pages_of_settings_are_those_of_their_declarations(page: str) -> None:
    file = settings_page.DOCS / f"{page}.md"
    assert file.read_text(encoding="utf-8") == settings_page.written(page), (
        "python -m tests.settings_page"
    )


def test_the_help_says_which_engines_a_flag_is_for() -> None:
    package = Path(settings_module.__file__).parent
    engines = package / "generation" / "engines"

    def read_in(files: Iterable[Path]) -> set[str]:
        return set(re.findall(r"settings\.(\w+)", "".join(file.read_text() for file in files)))

    read_by = {
        name: read_in([engines / f"{name}.py"])
        for name in ("vllm", "transformers", "server", "chat", "remote")
    }
    by_both = read_by.pop("remote")
    read_by |= {name: read_by[name] | by_both for name in ("server", "chat")}
    elsewhere = read_in(file for file in package.rglob("*.py") if file.parent != engines)
    of_some = set().union(*read_by.values()) - elsewhere
    of_some = {name for name in of_some if not all(name in names for names in read_by.values())}
    assert {"row_timeout", "batch_size", "endpoint", "kv_cache_gib"} <= of_some
    for name in of_some - {"engine"}:  # which a message names
        *users, last = [engine for engine, names in read_by.items() if name in names]
        who = f"{', '.join(users)} and {last}" if users else last
        assert f"Of {who}." in settings_of(PredictSettings)[name].help, name
