"""Adapters merged by the export, and beside the model by `--enable-lora`, whole or refused."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from tests.families.vllm_plugin.conftest import Answer

pytestmark = pytest.mark.vllm
CASES = ["text only", "two apart", "two adjacent", "late"]
SERVED = (
    r".*language_model.*(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj|cross_attn\.[qo]_proj)"
)
KEYS = r".*language_model.*cross_attn\.[kv]_proj"


@pytest.fixture(scope="module")
def engine(start_engine: Callable[..., Any]) -> Any:
    return start_engine(enforce_eager=True, enable_lora=True, max_lora_rank=8, max_loras=2)


@pytest.fixture
def adapter(random_generator_dir: Path, tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """Writes an adapter of noise for the projections named; also the model it makes, merged."""

    def make(targets: str, seed: int = 0) -> tuple[Path, Path]:
        from peft import LoraConfig, get_peft_model

        from mmrag_batch.families.mllama.loading import load_model
        from mmrag_batch.train.tuning import save_model

        torch.manual_seed(seed)
        directory = tmp_path / str(seed)
        base = load_model(random_generator_dir, dtype=torch.float32)
        model: Any = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules=targets))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.05)
        model.save_pretrained(directory)
        merged = save_model(model.merge_and_unload(), random_generator_dir, directory / "merged")
        return directory, merged

    return make


def test_a_merged_checkpoint_answers_as_base_and_adapter(
    random_generator_dir: Path,
    adapter: Callable[..., tuple[Path, Path]],
    start_engine: Callable[..., Any],
    prompt: Callable[[str], dict[str, Any]],
    reference: "dict[str, Answer]",
    transformers_answers: Callable[..., "dict[str, Answer]"],
) -> None:
    from vllm import SamplingParams

    from mmrag_batch.export.merge import write_generator

    directory, merged_by_peft = adapter(f"{SERVED}|{KEYS}")
    out = directory / "exported"
    write_generator(random_generator_dir, directory, out)
    prompts = {case: prompt(case) for case in CASES}
    expected = transformers_answers(merged_by_peft, prompts, 20)
    engine = start_engine(model=str(out), enforce_eager=True)
    greedy = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    outputs = engine.generate(list(prompts.values()), greedy, use_tqdm=False)
    found = [list(output.outputs[0].token_ids) for output in outputs]
    assert found == [answer.token_ids for answer in expected.values()]
    assert found != [reference[case].token_ids[:20] for case in CASES]


def test_adapters_answer_as_the_models_they_are_merged_into(
    engine: Any,
    adapter: Callable[..., tuple[Path, Path]],
    prompt: Callable[[str], dict[str, Any]],
    transformers_answers: Callable[..., "dict[str, Answer]"],
) -> None:
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    prompts = {case: prompt(case) for case in CASES}
    asked, expected, requests = [], [], []
    for seed in (1, 2):
        directory, merged = adapter(SERVED, seed)
        theirs = transformers_answers(merged, prompts, 20)
        asked += list(prompts.values())
        expected += [answer.token_ids for answer in theirs.values()]
        requests += [LoRARequest(f"noise {seed}", seed, str(directory))] * len(CASES)
    greedy = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    outputs = engine.generate(asked, greedy, use_tqdm=False, lora_request=requests)
    assert [list(output.outputs[0].token_ids) for output in outputs] == expected
    assert expected[: len(CASES)] != expected[len(CASES) :]


def test_an_adapter_on_keys_of_cross_attention_is_refused(
    engine: Any,
    adapter: Callable[..., tuple[Path, Path]],
    check: Callable[..., None],
) -> None:
    from vllm.lora.request import LoRARequest

    directory, _ = adapter(KEYS)
    with pytest.raises(Exception, match=r"cross_attn\.k_proj.*mmrag-batch export"):
        engine.llm_engine.add_lora(LoRARequest("keys", 3, str(directory)))
    check(engine, ["two apart"], tokens=5)
