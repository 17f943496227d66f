"""All that this plugin takes from vLLM's inside, probed by attribute: the one file to look at when
vLLM changes.

Read and run against 0.32; 0.33 by probing. Whatever is missing raises with the name of what is
missing, before a weight is loaded.
"""

import functools
import importlib
from collections.abc import Callable
from typing import Any

import vllm
from transformers import PreTrainedConfig
from vllm.logger import init_logger
from vllm.transformers_utils import config as vllm_config_module

logger = init_logger(f"vllm.{__name__}")  # below vLLM's own, so that it is shown with its format

TESTED = "0.32.0"
SUPPORTED = ("0.32", "0.33")


def warn_if_untested() -> None:
    """Say so where vLLM is of a version that nobody tried."""
    series = ".".join(vllm.__version__.split(".")[:2])
    if series not in SUPPORTED:
        logger.warning(
            "mmrag-batch's Mllama was tested with vLLM %s and made for %s; this is %s. "
            "Compare a few answers with `--engine transformers` before you trust it.",
            TESTED,
            " and ".join(SUPPORTED),
            vllm.__version__,
        )


class _LazyConfigs(vllm_config_module.LazyConfigDict):
    """vLLM's table of configurations, with entries of the form "module:Class" besides its own."""

    def __getitem__(self, model_type: str) -> type[PreTrainedConfig]:
        value = self.get(model_type)
        if isinstance(value, str) and ":" in value:
            module, _, name = value.partition(":")
            return getattr(importlib.import_module(module), name)
        return super().__getitem__(model_type)


def add_config(model_type: str, name: str) -> None:
    """Have vLLM read config.json of this model type as the class "module:Class"."""
    registry = _probe(vllm_config_module, "_CONFIG_REGISTRY")
    registry.__class__ = _LazyConfigs
    registry[model_type] = name


def add_config_hook(architecture: str, hook: type) -> None:
    """Have vLLM show an engine's configuration to `hook` before it builds anything from it."""
    models_config = importlib.import_module("vllm.model_executor.models.config")
    _probe(models_config, "MODELS_CONFIG_MAP")[architecture] = hook


def order_encoder_outputs() -> None:
    """Have the V1 runner hand over encoder outputs in the order of its batch.

    It runs the encoder in the order in which the scheduler lists the requests, while the slots of
    the cross-attention cache follow the batch. New requests and requests that resume after a
    preemption in one step would take each other's images. (The V2 runner orders them itself.)
    """
    runner = importlib.import_module("vllm.v1.worker.gpu_model_runner").GPUModelRunner
    encode = _probe(runner, "_execute_mm_encoder")
    if hasattr(encode, "__wrapped__"):  # done before in this process
        return

    @functools.wraps(encode)
    def encode_in_batch_order(self: Any, scheduler_output: Any) -> Any:
        if self.model_config.is_encoder_decoder:
            place = self.input_batch.req_id_to_index
            scheduled = scheduler_output.scheduled_encoder_inputs
            scheduler_output.scheduled_encoder_inputs = dict(
                sorted(scheduled.items(), key=lambda item: place[item[0]])
            )
        return encode(self, scheduler_output)

    runner._execute_mm_encoder = encode_in_batch_order


def show_decoder_prompts(model_type: str) -> None:
    """Have vLLM's server count and show the prompts that the decoder reads.

    Of an encoder-decoder it takes the encoder's, as that of a translator: `/tokenize` would find no
    token in a text, and `echo` nothing to write.
    """
    preprocess: Any = importlib.import_module("vllm.renderers.inputs.preprocess")
    extract = _probe(preprocess, "extract_target_prompt")
    if hasattr(extract, "__wrapped__"):
        return

    @functools.wraps(extract)
    def extract_decoder_prompt(model_config: Any, prompt: Any) -> Any:
        is_rendered = isinstance(prompt, dict) and prompt.get("type") == "enc_dec"
        if is_rendered and model_config.hf_config.model_type == model_type:
            return prompt["decoder_prompt"]
        return extract(model_config, prompt)

    preprocess.extract_target_prompt = extract_decoder_prompt


def check_requests(model_type: str, check: Callable[[Any, Any, bool], None]) -> None:
    """Have vLLM call `check` with the model's configuration, each request's decoder input, of every
    route, before the engine sees it, and whether our processor has made it.

    The multimodal processor sees no prompt without data, nor one whose images a client has prepared
    itself; what is wrong there would end the engine, or be answered as if it said something else.
    """
    processor = importlib.import_module("vllm.v1.engine.input_processor").InputProcessor
    validate = _probe(processor, "_validate_model_inputs")
    if hasattr(validate, "__wrapped__"):
        return

    @functools.wraps(validate)
    def validate_and_check(self: Any, encoder_input: Any, decoder_input: Any) -> None:
        config = self.model_config.hf_config
        if config.model_type == model_type:
            ours = encoder_input is not None or "encoder_prompt_token_ids" in decoder_input
            check(config, decoder_input, ours)
        validate(self, encoder_input, decoder_input)

    processor._validate_model_inputs = validate_and_check


def cross_attention_metadata(layer_name: str) -> Any:
    """This step's metadata of a cross-attention layer, or None while vLLM only profiles.

    Has `query_start_loc` (requests + 1,), `seq_lens` (requests,), the encoder lengths, and
    `max_seq_len`, the longest of them. CPU, FlashAttention and Triton backends have these.
    """
    context = importlib.import_module("vllm.forward_context").get_forward_context()
    metadata = context.attn_metadata
    if not isinstance(metadata, dict):
        return None
    for name in ("query_start_loc", "seq_lens", "max_seq_len"):
        _probe(metadata[layer_name], name)
    return metadata[layer_name]


def compile_nothing(vllm_config: Any) -> None:
    """Have vLLM run the model as it is. It never compiles a step that brings images, and what it
    leaves to a compiler is slow without one; CUDA graphs of decoding need none."""
    config = importlib.import_module("vllm.config")
    compilation = vllm_config.compilation_config
    _probe(compilation, "mode")
    compilation.mode = _probe(config, "CompilationMode").NONE


def _probe(owner: Any, name: str) -> Any:
    """An attribute of vLLM's, or an error that says what this version lacks."""
    try:
        return getattr(owner, name)
    except AttributeError as error:
        raise RuntimeError(
            f"vLLM {vllm.__version__} has no {owner!r}.{name}, which mmrag-batch's Mllama needs; "
            f"install vLLM {TESTED}."
        ) from error
