"""vLLM's engine in a process of its own, asked from threads of ours. All of vLLM that the engine
touches is touched here."""

import asyncio
import gc
import os
from collections.abc import Coroutine
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from threading import Lock, Thread
from typing import Any, Literal

from tokenizers import Tokenizer

from mmrag_batch.errors import UnavailableError
from mmrag_batch.families.family import Family, expand
from mmrag_batch.generation.engine import Request, Result
from mmrag_batch.generation.engines.vllm_limits import Limits
from mmrag_batch.generation.supervisor import EngineDied
from mmrag_batch.records import Problem

Dtype = Literal["float32", "bfloat16"]
_CONFIGURING = Lock()
"""Of engines that start side by side, one at a time: vLLM loads its plugins meanwhile."""

_CONTEXTS: list[Any] = []
"""ZeroMQ's, of engines that were closed. One that is collected together with a socket of its own
waits for that for ever; when the process ends it does not."""


def prepare_environment(cores: int) -> None:
    """Settings that vLLM reads from the environment when it is imported; those given are kept.

    `cores` are the engine's own on a CPU.
    """
    for name, value in {
        "VLLM_LOGGING_LEVEL": "ERROR",
        "TRANSFORMERS_VERBOSITY": "error",
        "VLLM_NO_USAGE_STATS": "1",  # it would call home
        "VLLM_PLUGINS": "mllama",
        "VLLM_USE_FLASHINFER_SAMPLER": "0",  # answers are greedy; it would be compiled at the start
        "TRITON_F32_DEFAULT": "ieee",  # on a GPU, float32 would be multiplied in fewer bits,
        "NVIDIA_TF32_OVERRIDE": "0",  # by Triton and by NVIDIA's own libraries
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # a fork would copy our threads' locks
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # it binds each run of a machine to the same cores
        "OMP_NUM_THREADS": str(cores),
        "PYTHONWARNINGS": "ignore",  # the engine's process warns of its own dependencies
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "TORCH_LOGS": "-torch._library.triton",  # which it misses on each start
        "HF_HUB_OFFLINE": "1",
    }.items():
        os.environ.setdefault(name, value)


class VllmProcess:
    """A started engine; see `supervisor.Worker`. Of the engines that `limits` has, it is the one of
    that `place`, on GPUs of its own. Raises UnavailableError if it does not start.
    """

    def __init__(
        self,
        generator_dir: Path,
        limits: Limits,
        *,
        dtype: Dtype,
        max_new_tokens: int,
        family: Family,
        max_images: int,
        place: int = 0,
    ) -> None:
        from vllm import AsyncEngineArgs, SamplingParams
        from vllm.platforms import current_platform
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.async_llm import AsyncLLM

        self._family = family
        self._tokenizer = Tokenizer.from_file(str(generator_dir / "tokenizer.json"))
        self._sampling = partial(
            SamplingParams,
            temperature=0.0,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            skip_clone=True,
        )
        self._max_new_tokens = max_new_tokens
        self._request_count = 0
        if current_platform.is_cpu():
            # It has a process of its own all the same. What this spares is one more, for the model,
            # which vLLM would bind to cores: the two poll each other and take a core from the rest.
            os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        try:
            with _CONFIGURING:
                engine_args = AsyncEngineArgs(
                    model=str(generator_dir),
                    dtype=dtype,
                    max_model_len=limits.row_tokens,
                    max_num_seqs=limits.rows,
                    max_num_batched_tokens=limits.step_tokens,
                    kv_cache_memory_bytes=limits.kv_cache_bytes,
                    gpu_memory_utilization=limits.gpu_share,
                    tensor_parallel_size=limits.ranks,
                    device_ids=_device_ids(limits, place),
                    logprobs_mode="raw_logprobs",
                    # Compiling takes a CPU longer than it saves on most tables.
                    enforce_eager=current_platform.is_cpu(),
                    use_tqdm_on_load=False,
                    **family.vllm_arguments(max_images),
                )
                config = engine_args.create_engine_config()
            self._llm = AsyncLLM.from_vllm_config(config, disable_log_stats=True)
        except Exception as error:
            raise UnavailableError(
                f"vLLM did not start: {error} Its own words, if any, are above; "
                "VLLM_LOGGING_LEVEL=INFO shows more, --engine transformers does without it."
            ) from error
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="vllm", daemon=True)
        self._thread.start()

    def ask(self, request: Request, /) -> Future[Result]:
        """The future of the answer."""
        return self._submit(self._answer(request))

    def close(self) -> None:
        """End the engine's process and our thread."""
        self._submit(self._shutdown()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        _CONTEXTS.extend(self._contexts())
        del self._llm
        gc.collect()  # it is in a cycle, and must not wait for a half-gone interpreter

    def _submit(self, coroutine: Coroutine[Any, Any, Any]) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def _contexts(self) -> tuple[Any, Any]:
        core = self._llm.engine_core
        return core.ctx, core.resources.ctx

    async def _shutdown(self) -> None:
        self._llm.shutdown()
        # Where the engine has died, a thread of vLLM's may have begun this and asks our loop to
        # close the sockets, too late.
        for context in self._contexts():
            for socket in list(context._sockets):
                socket.close(linger=0)
        current_task = asyncio.current_task()
        other_tasks = [task for task in asyncio.all_tasks() if task is not current_task]
        for task in other_tasks:
            task.cancel()
        await asyncio.gather(*other_tasks, return_exceptions=True)

    async def _answer(self, request: Request) -> Result:
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            if request.score:
                sampling = self._sampling(max_tokens=1, logprob_token_ids=list(request.score))
                [step] = (await self._generate(request, sampling)).logprobs
                # Of all tokens, so logits but for a constant.
                logits = tuple(step[token].logprob for token in request.score)
                return Result(request.key, logits=logits)
            # None but the token that is taken.
            sampling = self._sampling(max_tokens=self._max_new_tokens, logprobs=0)
            output = await self._generate(request, sampling)
        except EngineDeadError as error:
            raise EngineDied from error
        except MemoryError:
            raise
        except Exception as error:
            cause = error.__cause__ or error  # vLLM wraps what is not its own
            message = f"The engine could not answer: {type(cause).__name__}: {cause}"
            return Result(request.key, error=Problem("engine_failed", message))
        text = self._tokenizer.decode(output.token_ids, skip_special_tokens=True)
        steps = zip(output.token_ids, output.logprobs, strict=True)
        logprobs = tuple(step[token].logprob for token, step in steps)
        return Result(request.key, text=text.strip(), logprobs=logprobs)

    async def _generate(self, request: Request, sampling: Any) -> Any:
        """vLLM's only output for a prompt."""
        prompt: dict[str, Any] = {"prompt_token_ids": list(request.token_ids)}
        if request.images:
            prompt["multi_modal_data"] = {"image": list(request.images)}
        [rendered] = await self._llm.renderer.render_cmpl_async([prompt])
        self._request_count += 1
        async for result in self._llm.generate(rendered, sampling, str(self._request_count)):
            [output] = result.outputs
        if self._family.has_image_tokens:
            # What it took for an image, or did not, shows in the prompt that it says it had.
            expected = expand(self._family, request.token_ids, request.images)
            if list(result.prompt_token_ids) != expected:
                raise ValueError("vLLM had other tokens of the images than transformers has")
        return output


def _device_ids(limits: Limits, place: int) -> list[int] | None:
    """The GPUs of an engine, among those that are visible; None where there is one engine, which
    takes the first."""
    first = place * limits.ranks
    return None if limits.engines == 1 else list(range(first, first + limits.ranks))
