"""Models are fetched from a hub on this machine, by processes that know it from their variables."""

import errno
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from tests.faults.commands import Commands, Fault
from tests.hub.client import Client, main
from tests.hub.server import TOKEN, Hub

CARD = "---\nlicense: other\nlicense_name: model-licence\n---\n# A model\n"
FILES = {
    "config.json": '{"model_type": "some"}',
    "model.safetensors.index.json": '{"weight_map": {}}',
    "model-00001-of-00002.safetensors": "first " * 50_000,
    "model-00002-of-00002.safetensors": "second " * 50_000,
    "tokenizer.json": '{"version": "1.0"}',
    "tokenizer.model": "pieces",
    "merges.txt": "a b",
    "chat_template.jinja": "{{ messages }}",
    "README.md": CARD,
    "LICENSE": "You may.",
}
OTHERS = {
    "pytorch_model.bin": "pickle",
    "consolidated.safetensors": "the same again",
    "modeling_own.py": "import os",
    "onnx/text_encoder.onnx": "a graph",
    "original/consolidated.00.pth": "pickle",
    "picture.png": "pixels",
}


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A checkpoint as people upload it, of which only names and bytes matter."""
    return write(tmp_path / "model", FILES | OTHERS)


def files_in(folder: Path) -> set[str]:
    return {one.relative_to(folder).as_posix() for one in folder.rglob("*") if one.is_file()}


def test_weights_and_what_says_how_to_use_them_are_fetched_and_nothing_else(
    hub: Hub, client: Client, model: Path
) -> None:
    commit = hub.add("owner/name", model)
    folder = client.fetch("hf:owner/name").folder
    assert files_in(folder) == set(FILES)
    assert all((folder / name).read_text() == text for name, text in FILES.items())
    assert folder == client.home / "hub" / "models--owner--name" / "snapshots" / commit
    assert hub.downloads() == sorted(FILES)


@pytest.mark.parametrize(
    ("part", "files"),
    [
        ("retriever", ["image_encoder.onnx", "image_encoder.onnx.data", "text_encoder.onnx"]),
        ("retriever", ["bundle.json", "retriever/text_encoder.onnx", "retriever/tokenizer.json"]),
        ("generator", ["bundle.json", "generator/model.safetensors", "generator/README.md"]),
        ("towers", ["model.safetensors", "config.json"]),
        ("adapter", ["adapter_model.safetensors", "adapter_config.json", "prompt.json"]),
    ],
)
def test_each_part_is_fetched_by_the_names_of_its_files(
    hub: Hub, client: Client, tmp_path: Path, part: str, files: list[str]
) -> None:
    others = {"checkpoint-5/model.safetensors": "older", "optimizer.pt": "pickle"}
    hub.add("owner/name", write(tmp_path / "model", dict.fromkeys(files, "{}") | others))
    assert files_in(client.fetch("hf:owner/name", part).folder) == set(files)


def test_a_revision_is_a_branch_a_tag_a_pull_request_or_a_commit(
    hub: Hub, client: Client, model: Path
) -> None:
    first = hub.add("owner/name", model, "v1")
    (model / "config.json").write_text('{"newer": true}')
    second = hub.add("owner/name", model, "refs/pr/1")
    for revision, commit in (("v1", first), ("refs/pr/1", second), (first, first)):
        assert client.fetch(f"hf:owner/name@{revision}").folder.name == commit
    assert hub.downloads() == sorted([*FILES, "config.json"])  # the others are the same files


def test_what_is_in_the_cache_is_used_without_a_network(
    hub: Hub, client: Client, model: Path
) -> None:
    commit = hub.add("owner/name", model)
    folder = client.fetch("hf:owner/name").folder
    hub.asked.clear()
    offline = client.fetch("hf:owner/name", HF_HUB_OFFLINE="1")
    assert offline.folder == folder
    said = f"hf:owner/name@{commit} is taken from the cache, as HF_HUB_OFFLINE forbids the network"
    assert said in offline.err
    assert client.fetch(f"hf:owner/name@{commit}").folder == folder  # it cannot have changed
    unreachable = client.fetch("hf:owner/name", HF_ENDPOINT="http://127.0.0.1:9")
    assert unreachable.folder == folder
    assert "127.0.0.1:9 cannot be reached or broke off (ConnectError)" in unreachable.err
    assert not hub.asked
    hub.status = 503
    broken = client.fetch("hf:owner/name")
    assert broken.folder == folder
    assert f"{hub.url} answers with status 503" in broken.err


def test_without_a_network_what_is_missing_is_said_with_how_to_fetch_it(
    hub: Hub, client: Client, model: Path, tmp_path: Path
) -> None:
    hub.add("owner/name", model)
    for environ in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):
        done = client.fetch("hf:owner/name@main", **environ)
        assert done.code == 66
        assert "hf:owner/name@main is not whole in the cache" in done.err
        assert "`hf download owner/name --revision main` on another machine" in done.err
        assert "set HF_HOME" in done.err
    assert not hub.asked
    hf = shutil.which("hf", path=str(Path(sys.executable).parent))
    assert hf is not None
    elsewhere = client.environ | {"HF_HOME": str(tmp_path / "elsewhere")}
    command = [hf, "download", "owner/name", "--revision", "main"]
    subprocess.run(command, check=True, env=elsewhere, capture_output=True, timeout=60)
    done = client.fetch("hf:owner/name", HF_HUB_OFFLINE="1", HF_HOME=elsewhere["HF_HOME"])
    assert files_in(done.folder) == {*FILES, *OTHERS}


def test_part_of_a_model_in_the_cache_is_not_taken_for_all_of_it(
    hub: Hub, client: Client, model: Path
) -> None:
    hub.add("owner/name", model)
    folder = client.fetch("hf:owner/name").folder
    (folder / "model-00002-of-00002.safetensors").unlink()
    for name in ("hf:owner/name", f"hf:owner/name@{folder.name}"):
        done = client.fetch(name, HF_HUB_OFFLINE="1")
        assert done.code == 66
        assert "is not whole in the cache" in done.err


@pytest.mark.parametrize("changes", [{"gated": True}, {"private": True}])
def test_a_model_that_is_closed_says_what_to_do_and_no_token(
    hub: Hub, client: Client, model: Path, changes: dict[str, bool]
) -> None:
    hub.add("owner/name", model)
    for name, value in changes.items():
        setattr(hub.models["owner/name"], name, value)
    for token in ("", "hf_" + "other" * 6):
        done = client.fetch("hf:owner/name", **{"HF_TOKEN": token} if token else {})
        assert done.code == (77 if "gated" in changes else 66)
        assert "`hf auth login`" in done.err
        assert "hf_other" not in done.err
        if "gated" in changes:
            assert f"accept its terms at {hub.url}/owner/name" in done.err
        else:
            assert "the hub has no such model, or it is private" in done.err
    assert client.fetch("hf:owner/name", HF_TOKEN=TOKEN).code == 0


def test_a_token_that_the_hub_does_not_know_is_not_shown(
    hub: Hub, client: Client, model: Path
) -> None:
    hub.status = 401
    done = client.fetch("hf:owner/name", HF_TOKEN=TOKEN)
    assert "hf_" not in done.err
    hub.status = 403
    done = client.fetch("hf:owner/name", HF_TOKEN=TOKEN)
    assert done.code == 77
    assert "the hub refuses the token of HF_TOKEN or `hf auth login` (status 403)" in done.err
    assert TOKEN not in done.err


def test_what_does_not_exist_is_said(hub: Hub, client: Client, model: Path) -> None:
    hub.add("owner/name", model)
    for name, message in (
        ("hf:owner/nome", "hf:owner/nome@main: the hub has no such model, or it is private."),
        ("hf:owner/name@v9", f"no revision 'v9'; {hub.url}/owner/name/tree/main lists"),
    ):
        done = client.fetch(name, HF_TOKEN=TOKEN)
        assert done.code == 66
        assert message in done.err
    done = client.fetch("hf:owner/na..me")
    assert done.code == 78
    assert "hf:owner/na..me@main cannot be a name of the hub" in done.err


def test_a_server_that_is_no_hub_is_said(hub: Hub, client: Client, model: Path) -> None:
    hub.add("owner/name", model)
    hub.models["owner/name"].page = "<html>Log in to our network</html>"
    done = client.fetch("hf:owner/name")
    assert done.code == 66
    assert f"{hub.url} does not answer as a hub does; see HF_ENDPOINT" in done.err


def test_a_model_of_pickles_is_refused_before_anything_is_fetched(
    hub: Hub, client: Client, tmp_path: Path
) -> None:
    hub.add("owner/name", write(tmp_path / "pickles", {"config.json": "{}", **OTHERS}))
    hub.models["owner/name"].commits.popitem()[1].pop("consolidated.safetensors")
    hub.add("owner/name", write(tmp_path / "pickles", {"config.json": "{}", **OTHERS}))
    for function in ("fetch_part", "to_download"):
        done = client(function, "hf:owner/name")
        assert done.code == 77
        assert "has no model*.safetensors, only pickles (original/consolidated.00.pth" in done.err
        assert "hf:owner/name@refs/pr/1" in done.err
    assert client.fetch("hf:owner/name", "adapter").code == 77
    hub.add("owner/empty", write(tmp_path / "empty", {"config.json": "{}"}))
    done = client.fetch("hf:owner/empty", "adapter")
    assert done.code == 66
    assert "has no adapter_model.safetensors; name another model" in done.err
    assert not hub.downloads()


def test_a_connection_that_breaks_off_is_taken_up_where_it_broke(
    hub: Hub, client: Client, model: Path
) -> None:
    shard = model / "model-00002-of-00002.safetensors"
    shard.write_text("second " * 3 * 10**6)
    hub.add("owner/name", model)
    hub.breaks[shard.name] = 1
    folder = client.fetch("hf:owner/name").folder
    assert (folder / shard.name).read_bytes() == shard.read_bytes()
    assert hub.ranges == ["bytes=10485760-"]  # it is written in pieces of ten MiB


def test_a_download_that_was_killed_goes_on_with_the_files_that_are_missing(
    hub: Hub, client: Client, model: Path
) -> None:
    hub.add("owner/name", model)
    hub.seconds = 0.5  # six pieces a shard
    process = client.start("fetch_part", "hf:owner/name", "generator")
    kept = client.home / "hub" / "models--owner--name" / "snapshots"
    while len(files_in(kept)) < len(FILES) - 2:
        assert process.poll() is None, process.communicate()
    process.kill()
    process.communicate()
    hub.seconds = 0.0
    hub.asked.clear()
    assert client.fetch("hf:owner/name", HF_HUB_OFFLINE="1").code == 66
    assert files_in(client.fetch("hf:owner/name").folder) == set(FILES)
    assert hub.downloads() == [name for name in sorted(FILES) if name.startswith("model-")]


def test_what_would_be_downloaded_is_said_with_its_size_and_terms(
    hub: Hub, client: Client, model: Path
) -> None:
    commit = hub.add("owner/name", model)
    hub.models["owner/name"].gated = True
    done = client("to_download", "hf:owner/name")
    assert done.out == (
        f"hf:owner/name@main: 10 files of 0.7 MB would be downloaded, once you have accepted its "
        f"terms at {hub.url}/owner/name; commit {commit}, licence model-licence."
    )
    assert not hub.downloads()
    assert client.fetch("hf:owner/name", HF_TOKEN=TOKEN).code == 0
    for name in ("hf:owner/name", f"hf:owner/name@{commit}", str(model)):
        assert client("to_download", name).out == "None"
    assert client("to_download", "hf:owner/name", HF_HUB_OFFLINE="1").out == "None"
    assert client("to_download", "hf:owner/other", HF_HUB_OFFLINE="1").code == 66


def test_a_cache_without_room_is_told_before_the_download(
    hub: Hub, client: Client, model: Path
) -> None:
    hub.add("owner/name", model)
    hub.models["owner/name"].sizes["model-00001-of-00002.safetensors"] = 10**16
    done = client.fetch("hf:owner/name")
    assert done.code == 74
    assert "GB free, and 10000000.0 GB are needed. Make room, or set HF_HOME" in done.err
    assert not hub.downloads()


def instead(arguments: list[str]) -> None:
    """The hook of `commands`: `main`, in place of the command."""
    mock.patch("mmrag_batch.cli.app.main", main).start()


def test_a_disk_that_fills_up_or_is_read_only_is_told(
    hub: Hub, client: Client, model: Path, commands: Commands, tmp_path: Path
) -> None:
    hub.add("owner/name", model)
    for error, message in (
        (errno.ENOSPC, "is full. Make room, or set HF_HOME"),
        (errno.EROFS, "cannot be written; set HF_HOME"),
    ):
        done = commands.run(
            "fetch_part",
            "hf:owner/name",
            "generator",
            folder=tmp_path,
            fault=Fault(at=20, kind=error),
            environ=client.environ | {"HF_HUB_OFFLINE": "0"},
            hook=f"{__name__}:instead",
            hook_argument=[],
        )
        assert done.code == 74, done.output
        assert message in done.output
        assert "hf:owner/name@main: the" in done.output
    assert client.fetch("hf:owner/name").code == 0


def test_a_download_says_how_far_it_is(
    hub: Hub,
    tmp_path: Path,
    model: Path,
    steps: dict[str, tuple[int, int | None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In this process, as its fixture looks at the steps of this one."""
    from huggingface_hub import snapshot_download

    from mmrag_batch.hub.fetch import _counter
    from mmrag_batch.progress import Progress

    hub.add("owner/name", model)
    total = sum(len(text) for text in FILES.values())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with Progress("Fetching", total, "B") as progress:
        snapshot_download(
            "owner/name",
            endpoint=hub.url,
            cache_dir=tmp_path / "cache",
            allow_patterns=list(FILES),
            tqdm_class=_counter(progress),
        )
    assert steps == {"Fetching": (total, total)}
