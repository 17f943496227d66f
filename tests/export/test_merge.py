import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmrag_batch.errors import ConfigError, DeniedError, MissingError, MmragError, OutputError
from mmrag_batch.export.adapter import CONFIG, WEIGHTS
from mmrag_batch.export.checkpoint import INDEX, read_shard, shard_files
from mmrag_batch.export.merge import merge_adapter, plan_merge, write_generator
from mmrag_batch.families.mllama.inputs import load_image_processor
from mmrag_batch.families.mllama.loading import load_model

MakeAdapter = Callable[[float], Path]


@pytest.fixture
def adapter(make_adapter: MakeAdapter) -> Path:
    return make_adapter(0.05)


def rewrite(directory: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Change the tensors of an adapter."""
    weights = load_file(directory / WEIGHTS)
    change(weights)
    save_file(weights, directory / WEIGHTS)


def configure(directory: Path, **settings: object) -> None:
    """Change the configuration of an adapter."""
    config = json.loads((directory / CONFIG).read_text())
    (directory / CONFIG).write_text(json.dumps({**config, **settings}))


def weights_of(directory: Path) -> dict[str, torch.Tensor]:
    return {k: v for file in shard_files(directory) for k, v in load_file(file).items()}


def test_merging_equals_adapter_and_base(
    tiny_generator_dir: Path, adapter: Path, tmp_path: Path
) -> None:
    report = merge_adapter(tiny_generator_dir, adapter, tmp_path / "merged")
    assert report.logits is not None
    assert report.logits <= 1e-4
    assert report.weights <= 1.0

    before = load_model(tiny_generator_dir, dtype=torch.float32).state_dict()
    after = load_model(tmp_path / "merged", dtype=torch.float32).state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    parts = {name.split(".")[-2] for name in changed}
    assert parts == {"q_proj", "v_proj", "gate_proj", "fc1"}
    aimed_at = {name for name in before if name.split(".")[-2] in parts}
    assert changed == {name for name in aimed_at if name.endswith(".weight")}
    assert report.merged == len(changed)
    assert report.kept == len(before) - len(changed)


def test_shards_and_dtype_stay_as_they_are(
    sharded_base: Path,
    adapter: Path,
    tmp_path: Path,
    steps: dict[str, tuple[int, int | None]],
) -> None:
    report = merge_adapter(sharded_base, adapter, tmp_path / "merged")
    files = shard_files(sharded_base)
    size = sum(file.stat().st_size for file in files)
    assert steps["Merging"] == (size, size)
    compared, total = steps[f"Comparing with {sharded_base}"]
    assert 0 < compared <= size == total  # headers are no tensors
    assert "Comparing logits" in steps
    assert len(files) >= 6
    assert [file.name for file in shard_files(tmp_path / "merged")] == [f.name for f in files]
    for file in files:
        before = {(t.name, t.dtype, t.shape) for t in read_shard(file)}
        assert {
            (t.name, t.dtype, t.shape) for t in read_shard(tmp_path / "merged" / file.name)
        } == before
        assert {dtype for _, dtype, _ in before} == {"BF16"}
    base, merged = weights_of(sharded_base), weights_of(tmp_path / "merged")
    assert sum(not torch.equal(base[name], merged[name]) for name in base) == report.merged > 0


def test_a_merged_weight_is_the_rounded_sum(
    sharded_base: Path, adapter: Path, tmp_path: Path
) -> None:
    merge_adapter(sharded_base, adapter, tmp_path / "merged")
    lora = load_file(adapter / WEIGHTS)
    prefix = "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_"
    added = lora[prefix + "B.weight"] @ lora[prefix + "A.weight"] * 2  # alpha 4, rank 2
    name = "language_model.model.layers.0.self_attn.q_proj.weight"
    weight = weights_of(sharded_base)[name]
    expected = (weight.float() + added).bfloat16()
    torch.testing.assert_close(weights_of(tmp_path / "merged")[name], expected)
    assert not torch.equal(expected, weight)


def test_a_merged_directory_is_whole(sharded_base: Path, adapter: Path, tmp_path: Path) -> None:
    merge_adapter(sharded_base, adapter, tmp_path / "merged")
    names = {file.name for file in (tmp_path / "merged").iterdir()}
    assert names == {file.name for file in sharded_base.iterdir()}
    assert {"LICENSE.txt", "README.md", INDEX, "chat_template.jinja"} <= names
    modes = {file.stat().st_mode for file in (tmp_path / "merged").iterdir()}
    assert len(modes) == 1


@pytest.mark.parametrize("rank_stabilised", [False, True])
def test_scales_and_ranks_that_differ_by_layer_are_followed(
    tiny_generator_dir: Path, tmp_path: Path, rank_stabilised: bool
) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    base = load_model(tiny_generator_dir, dtype=torch.float32)
    config = LoraConfig(
        r=2,
        lora_alpha=3,
        target_modules=["q_proj", "v_proj", "embed_tokens"],
        rank_pattern={r"layers\.1\.self_attn\.q_proj": 4},
        alpha_pattern={"v_proj": 7},
        use_rslora=rank_stabilised,
    )
    model = get_peft_model(base, config)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.1)
    model.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)
    report = merge_adapter(tiny_generator_dir, tmp_path / "adapter", tmp_path / "merged")
    assert report.logits is not None

    fresh = load_model(tiny_generator_dir, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(fresh, str(tmp_path / "adapter"))
    expected = adapted.merge_and_unload().state_dict()
    found = load_model(tmp_path / "merged", dtype=torch.float32).state_dict()
    torch.testing.assert_close(found, expected)


def test_a_tokenizer_and_a_template_of_an_adapters_own_are_told(
    tiny_generator_dir: Path, adapter: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("tokenizer.json", "chat_template.jinja"):
        shutil.copy(tiny_generator_dir / name, adapter / name)
    merge_adapter(tiny_generator_dir, adapter, tmp_path / "same")
    assert "comes with" not in caplog.text
    (adapter / "chat_template.jinja").write_text("{{ messages }}")
    values = json.loads((adapter / "tokenizer.json").read_text())
    values["added_tokens"].pop()
    (adapter / "tokenizer.json").write_text(json.dumps(values))
    merge_adapter(tiny_generator_dir, adapter, tmp_path / "other")
    for what in ("tokenizer", "chat template"):
        assert f"comes with a {what} that is not that of {tiny_generator_dir}" in caplog.text
    for name in ("tokenizer.json", "chat_template.jinja"):
        merged = (tmp_path / "other" / name).read_bytes()
        assert merged == (tiny_generator_dir / name).read_bytes()


def test_an_adapter_with_the_names_of_older_transformers_is_taken(
    tiny_generator_dir: Path, adapter: Path, tmp_path: Path
) -> None:
    merge_adapter(tiny_generator_dir, adapter, tmp_path / "merged")

    def rename(weights: dict[str, torch.Tensor]) -> None:
        for name in list(weights):
            older = name.replace("model.model.language_model.", "model.language_model.model.")
            older = older.replace("model.model.vision_model.", "model.vision_model.")
            assert older != name
            weights[older] = weights.pop(name)

    rewrite(adapter, rename)
    configure(adapter, target_modules="(?:.*?language_model.*?(?:q_proj)).*?")
    report = merge_adapter(tiny_generator_dir, adapter, tmp_path / "again")
    assert report.logits is not None
    shards = [d / "model.safetensors" for d in (tmp_path / "merged", tmp_path / "again")]
    assert shards[0].read_bytes() == shards[1].read_bytes()


def test_field_09_an_adapter_tuned_on_the_text_half_alone_is_merged_and_told(
    tiny_generator_dir: Path, adapter: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As unsloth makes it: the vision half has adapters too, which nothing has touched."""

    def freeze_vision(weights: dict[str, torch.Tensor]) -> None:
        for name, tensor in weights.items():
            if "vision" in name and "lora_B" in name:
                tensor.zero_()

    rewrite(adapter, freeze_vision)
    names = [name for name in load_file(adapter / WEIGHTS) if "lora_B" in name]
    untouched = [name for name in names if "vision" in name]
    report = merge_adapter(tiny_generator_dir, adapter, tmp_path / "merged", logits=True)
    assert (report.merged, len(untouched) > 0) == (len(names) - len(untouched), True)
    told = f"leaves {len(untouched)} of the {len(names)} weights that it aims at as they were"
    assert told in caplog.text


def test_field_06_a_base_that_transformers_5_has_saved_is_merged_into(
    tiny_generator_dir: Path, adapter: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(tiny_generator_dir, tmp_path / "base")
    values = json.loads((base / "preprocessor_config.json").read_text())
    (base / "preprocessor_config.json").unlink()
    with pytest.raises(MissingError, match="no preprocessor_config"):
        plan_merge(base, adapter)
    (base / "processor_config.json").write_text(json.dumps({"image_processor": values}))
    merge_adapter(base, adapter, tmp_path / "merged")
    found, expected = map(load_image_processor, (tmp_path / "merged", tiny_generator_dir))
    assert found.to_dict() == expected.to_dict()


def test_an_untrained_adapter_is_refused(
    tiny_generator_dir: Path, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="changes nothing"):
        write_generator(tiny_generator_dir, make_adapter(0.0), tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_an_adapter_lost_in_rounding_is_refused(
    sharded_base: Path, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="Rounding leaves nothing of the adapter"):
        write_generator(sharded_base, make_adapter(1e-12), tmp_path / "merged")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_h08_an_adapter_of_another_base_is_refused(
    tiny_generator_dir: Path, adapter: Path, tmp_path: Path
) -> None:
    def widen(weights: dict[str, torch.Tensor]) -> None:
        name = next(name for name in weights if name.endswith("q_proj.lora_A.weight"))
        weights[name] = torch.ones(2, 33)

    rewrite(adapter, widen)
    with pytest.raises(ConfigError, match=r"other shapes: .*q_proj\.weight \(32, 33\), there"):
        plan_merge(tiny_generator_dir, adapter)

    def deepen(weights: dict[str, torch.Tensor]) -> None:
        for name in [name for name in weights if ".layers.0." in name]:
            weights[name.replace(".layers.0.", ".layers.30.")] = weights.pop(name)

    rewrite(adapter, deepen)
    with pytest.raises(ConfigError, match=r"does not have: .*layers\.30\."):
        plan_merge(tiny_generator_dir, adapter)


@pytest.mark.parametrize("where", [{}, {"inner": "text_config"}])
def test_a_quantised_base_is_refused(
    tiny_generator_dir: Path, adapter: Path, tmp_path: Path, where: dict[str, str]
) -> None:
    shutil.copytree(tiny_generator_dir, tmp_path / "base")
    file = tmp_path / "base" / "config.json"
    config = json.loads(file.read_text())
    inner = config[where["inner"]] if where else config
    inner["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    file.write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"is quantised \(bitsandbytes\)"):
        plan_merge(tmp_path / "base", adapter)


def test_quantised_weights_are_refused_whatever_the_config_says(
    tiny_generator_dir: Path, adapter: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_generator_dir, tmp_path / "base")
    file = tmp_path / "base" / "model.safetensors"
    weights = load_file(file)
    name = "language_model.model.layers.0.self_attn.q_proj.weight"
    weights[name] = torch.zeros(weights[name].numel() // 2, 1, dtype=torch.uint8)
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(ConfigError, match=r"quantised weights: .*q_proj\.weight \(U8\)"):
        plan_merge(tmp_path / "base", adapter)


def test_h01_a_pickled_adapter_is_refused(tiny_generator_dir: Path, adapter: Path) -> None:
    (adapter / WEIGHTS).rename(adapter / "adapter_model.bin")
    with pytest.raises(DeniedError, match="pickle"):
        plan_merge(tiny_generator_dir, adapter)


def test_h01_a_pickled_base_is_refused(
    tiny_generator_dir: Path, adapter: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_generator_dir, tmp_path / "base")
    (tmp_path / "base" / "model.safetensors").rename(tmp_path / "base" / "pytorch_model.bin")
    with pytest.raises(DeniedError, match="pickle"):
        plan_merge(tmp_path / "base", adapter)


def test_directories_without_an_adapter_or_a_generator_are_refused(
    tiny_generator_dir: Path, adapter: Path, tmp_path: Path
) -> None:
    with pytest.raises(MissingError, match="no adapter"):
        plan_merge(tiny_generator_dir, tmp_path)
    with pytest.raises(MissingError, match="a generator needs it"):
        plan_merge(tmp_path, adapter)


def test_an_adapter_that_would_overflow_is_refused(
    tiny_generator_dir: Path, adapter: Path, tmp_path: Path
) -> None:
    rewrite(adapter, lambda weights: [t.fill_(1e30) for t in weights.values()])
    with pytest.raises(ConfigError, match="overflows F32"):
        write_generator(tiny_generator_dir, adapter, tmp_path / "merged")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_an_existing_checkpoint_is_replaced_only_when_asked(
    tiny_generator_dir: Path, adapter: Path, tmp_path: Path
) -> None:
    out = tmp_path / "merged"
    write_generator(tiny_generator_dir, adapter, out)
    (out / "old").touch()
    with pytest.raises(OutputError, match="--overwrite"):
        write_generator(tiny_generator_dir, adapter, out)
    write_generator(tiny_generator_dir, adapter, out, overwrite=True)
    assert not (out / "old").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "merged"]


def test_a_disk_that_is_too_small_is_said_before_anything_is_written(
    tiny_generator_dir: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(MmragError, match="GiB free"):
        write_generator(tiny_generator_dir, adapter, tmp_path / "merged")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
