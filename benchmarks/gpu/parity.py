"""Greedy tokens of vLLM beside those of transformers, on every kind of request of the tests.

    python -m benchmarks.gpu.parity [--dtype bfloat16] [--eager] [--backend TRITON_ATTN]
                                    [--blocks 100] [--repeat 1]

The model is the tests' random one, its reference transformers on a CPU in float32; in bfloat16
transformers' own bfloat16 is compared as well, as what rounding alone does. With few `--blocks`
requests are preempted. Prints one line.
"""

import os
import tempfile
from itertools import starmap
from pathlib import Path
from typing import Any

import typer

from mmrag_batch.generation.engines.vllm_process import prepare_environment
from tests.families.vllm_plugin.conftest import (
    TOKENS,
    Answer,
    answers,
    prompts,
    write_random_generator,
)


def compared(ours: dict[int, tuple[str, Answer]], reference: dict[str, Answer]) -> str:
    """Answers and tokens that are equal, and how far log-probabilities are before they part."""
    equal = tokens = 0
    worst, partings = 0.0, []
    for case, answer in ours.values():
        expected = reference[case]
        pairs = zip(answer.token_ids, expected.token_ids, strict=True)
        same = next((n for n, (a, b) in enumerate(pairs) if a != b), TOKENS)
        equal += same == TOKENS
        tokens += same
        apart = [abs(a - b) for a, b in zip(answer.logprobs[:same], expected.logprobs[:same])]
        worst = max([worst, *apart])
        if same < TOKENS:
            gap = abs(answer.logprobs[same] - expected.logprobs[same])
            partings.append(f"{case} at {same} ({gap:.1e})")
    total = TOKENS * len(ours)
    first = f"; parted: {', '.join(partings[:4])}" if partings else ""
    return f"{equal}/{len(ours)} answers, {tokens}/{total} tokens, logprob {worst:.1e}{first}"


def main(
    dtype: str = "float32",
    eager: bool = False,
    backend: str | None = None,
    blocks: int | None = None,
    repeat: int = 1,
) -> None:
    """Compare, and say how many tokens are equal."""
    prepare_environment(4)
    os.environ["VLLM_LOGGING_LEVEL"] = "INFO"
    if eager:
        os.environ["TORCHDYNAMO_DISABLE"] = "1"
    with tempfile.TemporaryDirectory() as name:
        directory = write_random_generator(Path(name) / "generator")
        cases = prompts(directory)
        reference = answers(directory, cases, TOKENS)
        ours, preemptions = ask(directory, cases, dtype, eager, backend, blocks, repeat)
        rounded = answers(directory, cases, TOKENS, dtype) if dtype != "float32" else {}
    line = f"{dtype} {'eager' if eager else 'graphs'} {backend or 'auto'}: "
    line += compared(ours, reference) + f"; {preemptions:.0f} preemptions"
    if rounded:
        alone = dict(enumerate(rounded.items()))
        line += f"; transformers' own {dtype}: {compared(alone, reference)}"
    typer.echo(f"PARITY {line}")


def ask(
    directory: Path,
    cases: dict[str, dict[str, Any]],
    dtype: str,
    eager: bool,
    backend: str | None,
    blocks: int | None,
    repeat: int,
) -> tuple[dict[int, tuple[str, Answer]], float]:
    """What vLLM answers to all cases in one go, and how often it preempted a request."""
    from vllm import LLM, SamplingParams

    llm = LLM(
        str(directory),
        dtype=dtype,
        max_model_len=256 if blocks else 512,
        max_num_batched_tokens=1024,
        max_num_seqs=32,
        limit_mm_per_prompt={"image": 3},
        kv_cache_memory_bytes=1 << 30,
        gpu_memory_utilization=0.1,
        num_gpu_blocks_override=blocks,
        attention_backend=backend,
        enforce_eager=eager,
        disable_log_stats=False,
    )
    names = [*cases] * repeat
    greedy = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True, logprobs=0)
    # The first one, which has no image, is alone in its steps.
    outputs = [
        output
        for some in (names[:1], names[1:])
        for output in llm.generate([cases[name] for name in some], greedy, use_tqdm=False)
    ]

    def answer(name: str, output: Any) -> tuple[str, Answer]:
        [completion] = output.outputs
        steps = zip(completion.token_ids, completion.logprobs)
        return name, Answer(
            list(completion.token_ids), [step[token].logprob for token, step in steps]
        )

    found = dict(enumerate(starmap(answer, zip(names, outputs, strict=True))))
    metrics = [m.value for m in llm.get_metrics() if m.name == "vllm:num_preemptions"]
    llm.llm_engine.engine_core.shutdown()
    return found, sum(metrics)


if __name__ == "__main__":
    typer.run(main)
