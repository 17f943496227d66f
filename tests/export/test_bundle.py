import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mmrag_batch.bundle import (
    PROMPT_FIELDS,
    PROMPT_SETTINGS,
    RETRIEVER_SPEC,
    GeneratorSpec,
    open_bundle,
    read_manifest,
    read_prompt_settings,
    read_retriever_spec,
    write_prompt_settings,
    write_retriever_spec,
)
from mmrag_batch.declare import load_config
from mmrag_batch.errors import ConfigError, MissingError, OutputError
from mmrag_batch.export.bundle import plan_bundle, with_parts, write_bundle
from mmrag_batch.export.defaults import describe
from mmrag_batch.export.dry_run import show
from mmrag_batch.export.merge import write_generator
from mmrag_batch.export.onnx_retriever import export_towers
from mmrag_batch.export.parity import PARITY
from mmrag_batch.export.settings import ExportConfig
from mmrag_batch.parts import DEMO, encoders_identity, hash_model, read_spec, write_origin
from mmrag_batch.prompt import IMAGES_FIRST
from mmrag_batch.settings import DEMO_BUNDLE
from mmrag_batch.train.settings import GeneratorConfig
from mmrag_batch.train.towers import Towers, TowersConfig, save_towers
from tests.export.test_clip import make_clip

ROOT = Path(__file__).parents[2]

SPEC = GeneratorSpec(
    licence="Apache-2.0", scoring="letter", top_k=3, max_images=2, max_prompt_tokens=256
)


@pytest.fixture
def configure(
    tiny_encoders_dir: Path,
    tiny_towers_dir: Path,
    tiny_generator_dir: Path,
    make_adapter: Callable[[float], Path],
) -> Callable[..., ExportConfig]:
    """The config of a bundle of tiny parts; the adapter holds noise of the given size."""

    def configure(out: Path, *, noise: float = 0.05) -> ExportConfig:
        return ExportConfig(
            encoders=tiny_encoders_dir,
            towers=tiny_towers_dir,
            generator=tiny_generator_dir,
            adapter=make_adapter(noise),
            out=out,
            licence=SPEC.licence,
            scoring=SPEC.scoring,
            top_k=SPEC.top_k,
            max_images=SPEC.max_images,
            max_prompt_tokens=SPEC.max_prompt_tokens,
            trained_on="nothing",
            notice="Knows nothing.",
        )

    return configure


@pytest.fixture
def write(configure: Callable[..., ExportConfig]) -> Callable[..., None]:
    """Writes a bundle of tiny parts."""

    def write(out: Path, *, noise: float = 0.05, overwrite: bool = False) -> None:
        write_bundle(configure(out, noise=noise), overwrite=overwrite)

    return write


def test_a_written_bundle_opens(write: Callable[..., None], tmp_path: Path) -> None:
    out = tmp_path / "bundles" / "tiny"
    write(out)
    manifest = open_bundle(out).manifest
    assert manifest.generator == SPEC
    assert read_spec(out / "retriever").embedding_size == 24
    assert manifest.notice == "Knows nothing."
    assert {"retriever/question_tower.onnx", "generator/model.safetensors"} <= set(manifest.files)
    assert f"retriever/{RETRIEVER_SPEC}" not in manifest.files
    assert manifest.parity["merged_logits"] <= 1e-4
    assert len(manifest.parity) > 1
    assert [path.name for path in out.parent.iterdir()] == ["tiny"]


def test_a_generator_without_an_adapter_is_bundled_as_it_is(
    configure: Callable[..., ExportConfig], tiny_generator_dir: Path, tmp_path: Path
) -> None:
    config = replace(configure(tmp_path / "bundle"), adapter=None)
    assert [step.name for step in plan_bundle(config)][2] == "generator"
    manifest = write_bundle(config)
    weights = "model.safetensors"
    copied = (tmp_path / "bundle" / "generator" / weights).read_bytes()
    assert copied == (tiny_generator_dir / weights).read_bytes()
    assert "merged_logits" not in manifest.parity
    assert open_bundle(tmp_path / "bundle").manifest.generator == SPEC


def test_an_existing_directory_is_kept(write: Callable[..., None], tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="--overwrite"):
        write(tmp_path)
    with pytest.raises(OutputError, match="no bundle"):
        write(tmp_path, overwrite=True)


def test_an_old_bundle_is_replaced_when_asked(write: Callable[..., None], tmp_path: Path) -> None:
    out = tmp_path / "tiny"
    out.mkdir()
    (out / "bundle.json").write_text("{}")
    write(out, overwrite=True)
    assert json.loads((out / "bundle.json").read_text())["trained_on"] == "nothing"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "tiny"]


def test_a_failed_export_leaves_nothing_behind(write: Callable[..., None], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="changes nothing"):
        write(tmp_path / "tiny", noise=0.0)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_graphs_that_were_exported_before_are_taken_as_they_are(
    configure: Callable[..., ExportConfig], tiny_retriever_dir: Path, tmp_path: Path
) -> None:
    config = replace(configure(tmp_path / "bundle"), encoders=tiny_retriever_dir)
    manifest = write_bundle(config)
    graph = "image_encoder.onnx"
    copied = (tmp_path / "bundle" / "retriever" / graph).read_bytes()
    assert copied == (tiny_retriever_dir / graph).read_bytes()
    measured = json.loads((tiny_retriever_dir / PARITY).read_text())
    assert measured.items() <= manifest.parity.items()
    assert f"retriever/{PARITY}" not in manifest.files
    assert read_spec(open_bundle(tmp_path / "bundle").retriever_dir).embedding_size == 24


def test_a_plan_says_what_is_written_and_writes_nothing(
    configure: Callable[..., ExportConfig], tmp_path: Path
) -> None:
    config = configure(tmp_path / "bundle")
    steps = {step.name: step for step in plan_bundle(config)}
    assert list(steps) == ["encoders", "towers", "generator", "manifest"]
    shards = config.generator / "model.safetensors"
    assert steps["generator"].writes == shards.stat().st_size
    assert steps["generator"].memory == shards.stat().st_size + 2 * 2**30
    assert f"{config.out}: " in show(list(steps.values()), config.out)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_a_plan_refuses_what_the_export_would(
    configure: Callable[..., ExportConfig], tmp_path: Path
) -> None:
    config = configure(tmp_path / "bundle")
    with pytest.raises(MissingError, match="train the towers"):
        plan_bundle(replace(config, towers=tmp_path / "none"))
    with pytest.raises(MissingError, match="no adapter"):
        plan_bundle(replace(config, adapter=tmp_path))
    with pytest.raises(OutputError, match="--overwrite"):
        plan_bundle(replace(config, out=tmp_path))
    with pytest.raises(MissingError, match=r"none\.csv"):
        plan_bundle(replace(config, sample=tmp_path / "none.csv"))
    save_towers(Towers(TowersConfig(embedding_size=32, hidden_size=8)), tmp_path / "towers")
    with pytest.raises(ConfigError, match=r"of 32 dimensions, and .* gives 24"):
        plan_bundle(replace(config, towers=tmp_path / "towers"))


def test_a_plan_looks_at_encoders_but_for_their_weights(
    configure: Callable[..., ExportConfig], tmp_path: Path
) -> None:
    config = configure(tmp_path / "bundle")
    make_clip(tmp_path / "clip")
    towers = tmp_path / "towers"
    save_towers(Towers(TowersConfig(embedding_size=24, hidden_size=8)), towers)
    config = replace(config, encoders=tmp_path / "clip", towers=towers)
    assert plan_bundle(config)[0].source == tmp_path / "clip"
    file = tmp_path / "clip" / "preprocessor_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({**settings, "do_pad": True}))
    with pytest.raises(ConfigError, match="do_pad is True"):
        plan_bundle(config)
    (tmp_path / "clip" / "model.safetensors").unlink()
    with pytest.raises(MissingError, match=r"no model\.safetensors"):
        plan_bundle(config)
    published = tmp_path / "imagebind_huge.pth"
    published.write_bytes(b"weights")
    config = replace(config, encoders=published, vocabulary=tmp_path / "none.gz")
    with pytest.raises(MissingError, match=r"none\.gz"):
        plan_bundle(config)


@pytest.mark.parametrize(
    ("tuning", "export"),
    [
        ("llama_11b_80gb", "llama_11b"),
        ("llama_11b_24gb", "llama_11b"),
        ("demo_generator", "demo"),
        ("demo_qlora", "demo"),
        ("small_generator", "small"),
    ],
)
def test_what_training_showed_is_what_the_bundle_shows(
    tuning: str, export: str, tmp_path: Path
) -> None:
    tuned = load_config(ROOT / "train" / "configs" / f"{tuning}.yaml", GeneratorConfig)
    write_prompt_settings(tmp_path, tuned, IMAGES_FIRST)
    config = load_config(ROOT / "export" / "configs" / f"{export}.yaml", ExportConfig)
    spec = describe(replace(config, adapter=tmp_path)).generator
    for name in PROMPT_FIELDS:
        assert getattr(spec, name) == getattr(tuned, name)


def test_other_prompts_than_an_adapter_was_tuned_with_are_refused(
    configure: Callable[..., ExportConfig], tmp_path: Path
) -> None:
    config = replace(configure(tmp_path / "out"), top_k=None)
    assert config.adapter is not None
    write_prompt_settings(config.adapter, replace(SPEC, top_k=5, scoring="text"), IMAGES_FIRST)
    with pytest.raises(ConfigError, match=r"scoring is letter, and .* tuned with text\. Leave"):
        plan_bundle(config)
    tuned = describe(replace(config, scoring=None)).generator
    assert tuned == replace(SPEC, top_k=5, scoring="text")


def test_an_adapter_of_another_template_is_refused(tmp_path: Path) -> None:
    write_prompt_settings(tmp_path, SPEC, IMAGES_FIRST)
    file = tmp_path / PROMPT_SETTINGS
    file.write_text(file.read_text().replace('"template_version": 1', '"template_version": 0'))
    with pytest.raises(ConfigError, match="tuned with prompt template 0"):
        read_prompt_settings(tmp_path)


def test_l04_towers_and_adapters_of_other_origin_are_refused_before_anything_is_written(
    configure: Callable[..., ExportConfig],
    tiny_retriever_dir: Path,
    tiny_towers_dir: Path,
    tmp_path: Path,
) -> None:
    towers = shutil.copytree(tiny_towers_dir, tmp_path / "towers")
    spec = read_retriever_spec(tiny_retriever_dir)
    write_origin(towers, encoders=encoders_identity(tiny_retriever_dir, spec))
    config = replace(configure(tmp_path / "out"), towers=towers, encoders=tiny_retriever_dir)
    assert config.adapter is not None
    write_origin(config.adapter, base={"path": "base", "files": hash_model(config.generator)})
    plan_bundle(config)

    others = shutil.copytree(tiny_retriever_dir, tmp_path / "others")
    write_retriever_spec(others, replace(spec, weights="5c"))
    with pytest.raises(ConfigError, match=rf"{towers} were trained on other encoders"):
        plan_bundle(replace(config, encoders=others))
    with pytest.raises(ConfigError, match="other encoders"):
        export_towers(towers, others)
    base = shutil.copytree(config.generator, tmp_path / "base")
    (base / "tokenizer.json").write_text((base / "tokenizer.json").read_text() + " ")
    with pytest.raises(ConfigError, match=r"another base .*: tokenizer\.json differs"):
        plan_bundle(replace(config, generator=base))
    with pytest.raises(ConfigError, match="another base"):
        write_generator(base, config.adapter, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_the_demo_bundle_is_one_that_parts_are_taken_from(
    configure: Callable[..., ExportConfig], tmp_path: Path
) -> None:
    demo = read_spec(DEMO_BUNDLE / "retriever")
    towers = tmp_path / "towers"
    save_towers(Towers(TowersConfig(demo.embedding_size, hidden_size=8)), towers)
    config = replace(configure(tmp_path / "out"), towers=towers, encoders=DEMO)
    manifest = write_bundle(config)
    assert manifest.retriever is not None
    assert replace(manifest.retriever, temperature=demo.temperature) == demo
    known = read_manifest(DEMO_BUNDLE).parity
    assert known["text_encoder"] == manifest.parity["text_encoder"]
    assert known["question_tower"] != manifest.parity["question_tower"]
    graph = Path("retriever") / "text_encoder.onnx"
    assert (config.out / graph).read_bytes() == (DEMO_BUNDLE / graph).read_bytes()
    assert with_parts(replace(config, generator=DEMO)).generator == DEMO_BUNDLE / "generator"
