"""Room for the images of a request in vLLM's schedule, whatever its batches are limited to.

vLLM takes the budget of encoder tokens from `max_num_batched_tokens`, a limit on text, and refuses
to start where one request's images do not fit: eight images of the 11B are 51,232 tokens. They are
no part of a text batch, so the budget is what the tower takes at once, and the limit stays.
"""

import logging
from typing import Any

logger = logging.getLogger(f"vllm.{__name__}")  # below vLLM's own, whose format it has

MAX_IMAGES = 8
"""Most images of a request; vLLM's `limit_mm_per_prompt` lowers it."""
TOKENS_AT_ONCE = 32_768
"""Most tokens that go through the tower at once: five images of the 11B keep a large GPU busy, and
activations stay within what vLLM measured."""
REQUESTS_AT_ONCE = 4
"""Requests beyond which a step gets no faster by encoding more of them."""


def step_tokens(request: int) -> int:
    """Most encoder tokens of a step, where a request has as many as `request`."""
    return max(request, min(REQUESTS_AT_ONCE * request, TOKENS_AT_ONCE))


class EncoderBudget:
    """vLLM calls this for each configuration of an engine before anything is built from it."""

    @staticmethod
    def verify_and_update_config(vllm_config: Any) -> None:
        """Raise the encoder's budget, and the length for which CUDA graphs are captured, to what
        requests may hold; switch off what the model cannot do. ValueError where no image is allowed
        at all."""
        from mmrag_batch.families.mllama.vllm_plugin.versions import compile_nothing

        model, scheduler = vllm_config.model_config, vllm_config.scheduler_config
        limit = model.multimodal_config.get_limit_per_prompt("image")
        if limit < 1:
            raise ValueError("limit_mm_per_prompt must allow one image, also for text alone.")
        request = min(limit, MAX_IMAGES) * model.hf_config.tokens_per_image
        # Attention captured for fewer keys than a request brings may leave out the rest.
        model.hf_config.max_source_positions = request
        if vllm_config.cache_config.enable_prefix_caching:
            logger.warning("Prefix caching is off: what a text attends to depends on its images.")
            vllm_config.cache_config.enable_prefix_caching = False
        compile_nothing(vllm_config)
        scheduler.disable_chunked_mm_input = False  # an item begins at place 0, so none is cut
        tokens = step_tokens(request)
        if scheduler.max_num_encoder_input_tokens < tokens:
            scheduler.max_num_encoder_input_tokens = scheduler.encoder_cache_size = tokens

    @staticmethod
    def verify_and_update_model_config(model_config: Any) -> None:
        """Nothing to change; vLLM calls it."""
