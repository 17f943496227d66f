"""A vLLM plugin: Llama 3.2 Vision (Mllama) on vLLM's V1 engine.

vLLM served `MllamaForConditionalGeneration` until 0.10.2 and dropped it with its V0 engine. Where
this package is installed, vLLM finds `register` through the entry point group
`vllm.general_plugins` in each of its processes, so `vllm.LLM(model=...)` and vLLM's API server load
a Hugging Face checkpoint of Llama 3.2 Vision as it is.

The reference for every number is transformers' `modeling_mllama.py`, in which the model is tuned.
"""


def register() -> None:
    """Tell vLLM the names of the model and of its configuration; neither is imported here."""
    from vllm import ModelRegistry

    from mmrag_batch.families.family import MLLAMA
    from mmrag_batch.families.mllama.vllm_plugin.budget import EncoderBudget
    from mmrag_batch.families.mllama.vllm_plugin.orphans import end_with_parent
    from mmrag_batch.families.mllama.vllm_plugin.versions import (
        add_config,
        add_config_hook,
        warn_if_untested,
    )

    end_with_parent()
    warn_if_untested()
    add_config(
        "mllama", "mmrag_batch.families.mllama.vllm_plugin.config:EncoderDecoderMllamaConfig"
    )
    add_config_hook(MLLAMA, EncoderBudget)
    ModelRegistry.register_model(MLLAMA, f"{__name__}.model:{MLLAMA}")
