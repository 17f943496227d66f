"""What the tests of the plugin share: a random Mllama, requests of every kind, and what
transformers answers to them."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer

log = logging.getLogger(__name__)

TOKENS = 40
"""Tokens of an answer; engines may be asked for fewer."""
TEXT = "Question: What does the red cube cost? Evidence: The red cube costs 12 coins."
BOS = "<|begin_of_text|>"

# Tiles are 32 pixels wide, so these have as many as their names say.
ONE = Image.radial_gradient("L").resize((30, 30)).convert("RGB")
TWO = Image.linear_gradient("L").resize((60, 30)).convert("RGB")
THREE = Image.radial_gradient("L").resize((30, 90)).convert("RGB")
FOUR = Image.linear_gradient("L").rotate(90).resize((64, 64)).convert("RGB")
CASES: dict[str, tuple[str, list[Image.Image]]] = {
    "text only": (f"{BOS}{TEXT}", []),
    "1 tile": (f"{BOS}<|image|>{TEXT}", [ONE]),
    "2 tiles": (f"{BOS}<|image|>{TEXT}", [TWO]),
    "3 tiles": (f"{BOS}<|image|>{TEXT}", [THREE]),
    "4 tiles": (f"{BOS}<|image|>{TEXT}", [FOUR]),
    "two apart": (f"{BOS}<|image|>The red cube.<|image|>{TEXT}", [THREE, ONE]),
    "eight tiles": (f"{BOS}<|image|><|image|>{TEXT}", [FOUR, FOUR.rotate(180)]),
    "two adjacent": (f"{BOS}See <|image|><|image|>{TEXT}", [ONE, TWO]),
    "one, then two": (f"{BOS}<|image|>A thing.<|image|><|image|>{TEXT}", [FOUR, TWO, ONE]),
    "two, then one": (f"{BOS}<|image|><|image|>A thing.<|image|>{TEXT}", [TWO, ONE, THREE]),
    "late": (f"{BOS}{TEXT}{TEXT}{TEXT}<|image|>What?", [TWO]),
    "first token": (f"<|image|>{TEXT}", [THREE]),
    "last token": (f"{BOS}{TEXT}<|image|>", [ONE]),
}


@dataclass(frozen=True)
class Answer:
    """Greedy tokens and the log-probability of each."""

    token_ids: list[int]
    logprobs: list[float]


@pytest.fixture(scope="session")
def random_generator_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Mllama that listens to its images."""
    return write_random_generator(tmp_path_factory.mktemp("random") / "generator")


def write_random_generator(directory: Path, *, layers: int = 10) -> Path:
    """Ten layers, two of them cross-attention, or as many as are asked for, in `directory`.

    Heads are 32 wide, the least that vLLM's CPU attention takes. Weights as small as the
    initialisation's would make all answers alike.
    """
    from mmrag_batch.families.mllama.loading import load_model
    from mmrag_batch.train.mllama import GeneratorSizes, build_generator

    sizes = GeneratorSizes(
        vocabulary=320,
        hidden_size=128,
        layers=layers,
        heads=4,
        kv_heads=2,
        intermediate_size=192,
        vision_hidden_size=64,
        vision_layers=3,
        vision_heads=2,
        image_size=32,
        context_length=1024,
    )
    build_generator(directory, [TEXT], sizes=sizes)
    model = load_model(directory, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.mul_(50 if "embed_tokens" in name else 4)
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def prompt(random_generator_dir: Path) -> Callable[[str], dict[str, Any]]:
    """vLLM's form of a case: token ids and images."""
    return prompts(random_generator_dir).__getitem__


def prompts(generator_dir: Path) -> dict[str, dict[str, Any]]:
    """Every case in vLLM's form."""
    tokenizer = Tokenizer.from_file(str(generator_dir / "tokenizer.json"))
    made: dict[str, dict[str, Any]] = {}
    for case, (text, images) in CASES.items():
        made[case] = {"prompt_token_ids": tokenizer.encode(text, add_special_tokens=False).ids}
        if images:
            made[case]["multi_modal_data"] = {"image": images}
    return made


@pytest.fixture(scope="session")
def reference(random_generator_dir: Path) -> dict[str, Answer]:
    """What transformers answers to each case, alone."""
    return answers(random_generator_dir, prompts(random_generator_dir), TOKENS)


@pytest.fixture(scope="session")
def transformers_answers() -> Callable[..., dict[str, Answer]]:
    """`answers`, for models other than the random one."""
    return answers


def answers(
    generator_dir: Path, prompts: dict[str, dict[str, Any]], count: int, dtype: str = "float32"
) -> dict[str, Answer]:
    """`count` greedy tokens of transformers, on a CPU, for each of vLLM's prompts."""
    from mmrag_batch.families.mllama.inputs import collate, load_image_processor
    from mmrag_batch.families.mllama.loading import load_model

    model: Any = load_model(generator_dir, dtype=getattr(torch, dtype))
    image_processor = load_image_processor(generator_dir)
    found = {}
    for case, prompt in prompts.items():
        token_ids = prompt["prompt_token_ids"]
        images = prompt.get("multi_modal_data", {"image": []})["image"]
        inputs = collate([token_ids], [images], image_processor, 0, model.config.image_token_index)
        del inputs["position_ids"]  # `generate` counts them itself
        with torch.inference_mode():
            output = model.generate(
                **inputs,
                max_new_tokens=count,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
                output_logits=True,
                return_dict_in_generate=True,
            )
        chosen = output.sequences[0, len(token_ids) :]
        logprobs = torch.cat(output.logits).float().log_softmax(-1).gather(1, chosen[:, None])
        found[case] = Answer(chosen.tolist(), logprobs.flatten().tolist())
    return found


@pytest.fixture(scope="module")
def start_engine(random_generator_dir: Path) -> Iterator[Callable[..., Any]]:
    """Starts a vLLM engine with the settings given; it ends with the module. One that compiles
    nothing and has one rank is in this process, which saves the imports of two others."""
    engines = []
    with pytest.MonkeyPatch.context() as patch:
        for name, value in engine_environment().items():
            patch.setenv(name, value)
        patch.setenv("TORCHDYNAMO_DISABLE", "1")  # else the sampler alone takes ten seconds

        def start(**settings: Any) -> Any:
            from vllm import LLM

            if not settings.get("enforce_eager"):
                patch.delenv("TORCHDYNAMO_DISABLE")
            alone = settings.get("enforce_eager") and "tensor_parallel_size" not in settings
            patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0" if alone else "1")
            sizes = {"max_model_len": 512, "max_num_batched_tokens": 1024}
            engine = LLM(
                dtype="float32",
                limit_mm_per_prompt={"image": 3},
                disable_log_stats=False,
                **{"model": str(random_generator_dir), **sizes, **settings},
            )
            patch.setenv("TORCHDYNAMO_DISABLE", "1")
            engines.append(engine)
            return engine

        yield start
        for engine in engines:
            engine.llm_engine.engine_core.shutdown()


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """`engine_environment`, for processes that a test starts."""
    return engine_environment()


def engine_environment() -> dict[str, str]:
    """Variables of a small vLLM on a shared CPU, without a network."""
    return {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "2",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
    }


@pytest.fixture(scope="session")
def check(
    prompt: Callable[[str], dict[str, Any]], reference: dict[str, Answer]
) -> Callable[..., None]:
    """Has an engine answer cases in one go and compares each answer with transformers', of the
    random model or as `expected`.

    `pytest --log-cli-level=INFO` shows how large the differences are.
    """

    def run(
        engine: Any,
        cases: list[str],
        tokens: int = TOKENS,
        expected: dict[str, Answer] = reference,
    ) -> None:
        from vllm import SamplingParams

        greedy = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, logprobs=0)
        outputs = engine.generate([prompt(case) for case in cases], greedy, use_tqdm=False)
        differences = []
        for case, output in zip(cases, outputs, strict=True):
            completion = output.outputs[0]
            assert list(completion.token_ids) == expected[case].token_ids[:tokens], case
            for token, place, theirs in zip(
                completion.token_ids, completion.logprobs, expected[case].logprobs
            ):
                differences.append(abs(place[token].logprob - theirs))
        worst = max(differences)
        log.info("%s: largest difference of a log-probability %.1e", cases[0], worst)
        assert worst < 1e-4

    return run
