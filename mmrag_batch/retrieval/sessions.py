"""ONNX Runtime sessions on the device that was asked for, and on no other."""

import logging
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from mmrag_batch.errors import DeniedError, MissingError, UnavailableError
from mmrag_batch.machine import has_cuda, install

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

Device = Literal["cpu", "cuda"]
log = logging.getLogger(__name__)
SCALED_BY_ROW = "mmrag_batch.scaled_by_row"
"""In the metadata of a graph of 8 bits whose rows do not depend on each other."""
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
BESIDE_AN_ENGINE = {
    "arena_extend_strategy": "kSameAsRequested",  # not to the next power of two
    "cudnn_conv_algo_search": "HEURISTIC",  # the exhaustive search takes gigabytes for a moment
}
"""How the CUDA provider leaves to the generator what it does not need."""


def find_device(name: Literal["auto", "cpu", "cuda"]) -> Device:
    """`auto` is a GPU where there is one that ONNX Runtime can use: the `cpu` extra can use none,
    and a login node with the `gpu` extra has none."""
    if name != "auto":
        return name
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return "cpu"
    if has_cuda():
        return "cuda"
    log.info("There is no GPU here: retrieval runs on the CPU.")
    return "cpu"


def open_session(file: Path, *, device: Device, threads: int | None = None) -> "InferenceSession":
    """A session of the graph in `file`; `threads` limits what one call uses (default: all cores).

    Raises MissingError where the graph is not there or damaged, DeniedError where its weights lie
    outside its folder, UnavailableError where ONNX Runtime is not installed or would run it on
    another device than `device`.
    """
    try:
        import onnxruntime
    except ImportError:
        raise UnavailableError(
            f"ONNX Runtime is not installed: {install('gpu' if device == 'cuda' else 'cpu')}"
        ) from None
    if not file.is_file():
        raise MissingError(f"{file} is missing; export the retriever again.")
    provider = PROVIDERS[device]
    if provider not in onnxruntime.get_available_providers():
        raise UnavailableError(
            f"ONNX Runtime has no {provider} here. For a GPU, `mmrag-batch doctor` says what to "
            "install; without one: --device cpu."
        )
    _share_memory()
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.use_env_allocators", "1")
    options.intra_op_num_threads = threads or 0
    # Spinning threads would take the cores that generation works on at the same time.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    providers: list[Any] = [PROVIDERS["cpu"]]
    if device == "cuda":
        onnxruntime.preload_dlls()  # CUDA lies in Python packages, where the loader does not look
        providers.insert(0, (provider, BESIDE_AN_ENGINE))
    try:
        session = onnxruntime.InferenceSession(file, options, providers=providers)
    except Exception as error:  # what ONNX Runtime raises has no base of its own
        if "External data path" in str(error):  # it lets weights lie below the graph's folder only
            raise DeniedError(f"{file} reads files outside its folder; do not use it.") from error
        raise MissingError(f"{file} cannot be loaded; export it again. {error}") from error
    if session.get_providers()[0] != provider:
        raise UnavailableError(
            f"ONNX Runtime could not start {provider} and fell back to the CPU; check the CUDA and "
            "cuDNN libraries, or use --device cpu."
        )
    return session


def is_scaled_by_row(session: "InferenceSession") -> bool:
    """Whether a graph of 8 bits gives an item the same bytes in any batch."""
    return SCALED_BY_ROW in session.get_modelmeta().custom_metadata_map


def run_session(
    session: "InferenceSession", inputs: Mapping[str, NDArray[Any]], *, size: int | None = None
) -> NDArray[np.float32]:
    """The one output of a graph, (N, size) where that is given, from inputs (N, ...) by name, bound
    to where the session computes: nothing is copied to a GPU or back but once.

    Raises MissingError for a graph that does not take these, or gives something else.
    """
    [count] = {len(array) for array in inputs.values()}
    try:
        output = _run(session, inputs)
        if size is not None and output.shape != (count, size):
            raise ValueError(f"It gives {output.shape}, not {(count, size)}.")
    except Exception as error:  # what ONNX Runtime raises has no base of its own
        if "allocate memory" in str(error):
            raise
        given = ", ".join(f"{name} {array.shape}" for name, array in inputs.items())
        raise MissingError(
            f"A graph of the retriever cannot be run with {given}; export it again. {error}"
        ) from error
    return output


def _run(session: "InferenceSession", inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    import onnxruntime

    is_cuda = session.get_providers()[0] == PROVIDERS["cuda"]
    binding = session.io_binding()
    for name, array in inputs.items():
        value = onnxruntime.OrtValue.ortvalue_from_numpy(array, "cuda" if is_cuda else "cpu", 0)
        binding.bind_ortvalue_input(name, value)
    binding.bind_output(session.get_outputs()[0].name, "cuda" if is_cuda else "cpu", 0)
    session.run_with_iobinding(binding)
    output: NDArray[np.float32] = binding.copy_outputs_to_cpu()[0]
    return output


@cache
def _share_memory() -> None:
    """One arena for the sessions of this process; each would keep the peak of its own."""
    import onnxruntime

    memory_info = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    # No limit, and otherwise ONNX Runtime's defaults.
    config = onnxruntime.OrtArenaCfg(0, -1, -1, -1)
    onnxruntime.create_and_register_allocator(memory_info, config)
