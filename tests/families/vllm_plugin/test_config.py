"""The configuration, and what the plugin says about versions of vLLM."""

import copy
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import MllamaConfig

from mmrag_batch.families.mllama.vllm_plugin.budget import EncoderBudget
from mmrag_batch.families.mllama.vllm_plugin.config import EncoderDecoderMllamaConfig


def test_a_plain_checkpoint_becomes_an_encoder_decoder_with_room_for_the_image_token(
    random_generator_dir: Path,
) -> None:
    plain: Any = MllamaConfig.from_pretrained(random_generator_dir)
    config = EncoderDecoderMllamaConfig.from_pretrained(random_generator_dir)
    assert config.is_encoder_decoder
    assert config.text.head_size == plain.text_config.vocab_size == plain.image_token_index
    assert config.text.vocab_size > plain.image_token_index
    assert config.max_source_positions == 4 * 5  # tiles of 2 x 2 patches and a class token


def test_a_config_that_travels_between_processes_is_widened_once(
    random_generator_dir: Path,
) -> None:
    config = EncoderDecoderMllamaConfig.from_pretrained(random_generator_dir)
    for travelled in (
        copy.deepcopy(config),
        pickle.loads(pickle.dumps(config)),
        EncoderDecoderMllamaConfig.from_dict(config.to_dict()),
    ):
        assert travelled.text.vocab_size == config.text.vocab_size
        assert travelled.text.head_size == config.text.head_size


def settings(limit: int, budget: int, tokens: int = 20) -> SimpleNamespace:
    """As much of vLLM's configuration as the budget looks at; `tokens` an image."""
    return SimpleNamespace(
        model_config=SimpleNamespace(
            multimodal_config=SimpleNamespace(get_limit_per_prompt=lambda _: limit),
            hf_config=SimpleNamespace(tokens_per_image=tokens),
        ),
        cache_config=SimpleNamespace(enable_prefix_caching=False),
        compilation_config=SimpleNamespace(mode=None),
        scheduler_config=SimpleNamespace(
            max_num_encoder_input_tokens=budget,
            encoder_cache_size=budget,
            disable_chunked_mm_input=True,
        ),
    )


@pytest.mark.vllm
@pytest.mark.parametrize(
    ("limit", "budget", "tokens", "longest", "expected"),
    [
        (3, 50, 20, 60, 240),  # four requests at once
        (3, 500, 20, 60, 500),
        (999, 100, 20, 160, 640),  # eight images are the most
        (1, 8192, 6404, 6_404, 25_616),
        (2, 8192, 6404, 12_808, 32_768),
        (8, 8192, 6404, 51_232, 51_232),
    ],
)
def test_the_encoder_has_room_for_the_images_of_requests(
    limit: int, budget: int, tokens: int, longest: int, expected: int
) -> None:
    config = settings(limit, budget, tokens)
    EncoderBudget.verify_and_update_config(config)
    scheduler = config.scheduler_config
    assert scheduler.max_num_encoder_input_tokens == scheduler.encoder_cache_size == expected
    assert config.compilation_config.mode == 0
    # CUDA graphs are captured for this length: attention may leave out what comes after it.
    assert config.model_config.hf_config.max_source_positions == longest


def test_a_limit_of_no_images_is_refused() -> None:
    with pytest.raises(ValueError, match="must allow one image"):
        EncoderBudget.verify_and_update_config(settings(0, 100))


@pytest.mark.vllm
@pytest.mark.parametrize(("version", "warned"), [("0.32.1", 0), ("0.33.0", 0), ("0.40.0", 1)])
def test_an_untested_version_is_told_with_what_was_tested(
    version: str, warned: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmrag_batch.families.mllama.vllm_plugin import versions

    told: list[str] = []
    monkeypatch.setattr("vllm.__version__", version)
    monkeypatch.setattr(versions.logger, "warning", lambda text, *args: told.append(text % args))
    versions.warn_if_untested()
    assert len(told) == warned
    assert all(versions.TESTED in text and version in text for text in told)


@pytest.mark.vllm
def test_a_vllm_that_lacks_what_is_needed_says_what(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    from mmrag_batch.families.mllama.vllm_plugin.versions import order_encoder_outputs

    monkeypatch.delattr(GPUModelRunner, "_execute_mm_encoder")
    with pytest.raises(RuntimeError, match=r"has no .*_execute_mm_encoder.*install vLLM 0\.32"):
        order_encoder_outputs()
