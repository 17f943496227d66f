"""Answers on vLLM's second model runner, which it takes on a GPU, equal transformers'.

On a CPU it needs Triton, interpreted, which nothing else here does; so this is skipped unless
TRITON names a folder with it:

    pip install --no-deps --target build/triton triton==3.6.0
    TRITON=build/triton pytest tests/families/vllm_plugin/test_v2_runner.py
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.families.vllm_plugin.conftest import CASES, prompts

if TYPE_CHECKING:
    from tests.families.vllm_plugin.conftest import Answer

FOLDER = os.environ.get("TRITON")
pytestmark = [pytest.mark.vllm, pytest.mark.skipif(FOLDER is None, reason="TRITON is not set")]
ROOT = Path(__file__).parents[3]
TOKENS = 6
"""An interpreted step takes half a second."""


def answer(generator_dir: Path) -> None:
    """Print the tokens and log-probabilities of each case, all in one batch."""
    from vllm import LLM, SamplingParams

    llm: Any = LLM(
        str(generator_dir),
        dtype="float32",
        enforce_eager=True,
        limit_mm_per_prompt={"image": 3},
        max_model_len=512,
        max_num_batched_tokens=1024,
    )
    assert llm.llm_engine.vllm_config.use_v2_model_runner
    greedy = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True, logprobs=0)
    outputs = llm.generate(list(prompts(generator_dir).values()), greedy, use_tqdm=False)
    found = []
    for output in outputs:
        [completion] = output.outputs
        chosen = zip(completion.token_ids, completion.logprobs)
        found.append([(token, place[token].logprob) for token, place in chosen])
    print(json.dumps(found))  # noqa: T201


def test_every_case_is_answered_as_by_transformers(
    random_generator_dir: Path, reference: "dict[str, Answer]", environment: dict[str, str]
) -> None:
    paths = [str(Path(__file__).parent / "on_v2"), str(FOLDER), str(ROOT)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.families.vllm_plugin.test_v2_runner", random_generator_dir],
        cwd=ROOT,
        env={
            **os.environ,
            **environment,
            "PYTHONPATH": os.pathsep.join(paths),
            "TORCHDYNAMO_DISABLE": "1",
            "VLLM_USE_V2_MODEL_RUNNER": "1",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    [line] = [line for line in done.stdout.splitlines() if line.startswith("[[")]
    for case, found in zip(CASES, json.loads(line), strict=True):
        tokens, logprobs = zip(*found)
        assert list(tokens) == reference[case].token_ids[:TOKENS], case
        assert logprobs == pytest.approx(reference[case].logprobs[:TOKENS], abs=1e-4), case


if __name__ == "__main__":
    answer(Path(sys.argv[1]))
