"""Where the tensors of a checkpoint, and of an adapter, belong."""

from vllm.model_executor.models.utils import WeightsMapper


class _AdapterNames(WeightsMapper):
    """The names of an adapter's tensors; refuses what would be left out in silence.

    Keys and values of cross-attention come from encoder rows, for which vLLM keeps no record of
    the adapter that a request asks for.
    """

    def _map_name_with_shard(self, key: str) -> tuple[str, object] | None:
        if ".lora_" in key and (".cross_attn.k_proj." in key or ".cross_attn.v_proj." in key):
            raise ValueError(
                f"The adapter changes {key.partition('.lora_')[0]}, the keys or values of "
                "cross-attention, which vLLM cannot do for one request among others. Merge it: "
                "mmrag-batch export."
            )
        return super()._map_name_with_shard(key)


class CheckpointNames(WeightsMapper):
    """Both namings of public checkpoints -> this model's."""

    def get_rename_mapper(self) -> WeightsMapper:
        """What vLLM maps an adapter's names with."""
        return _AdapterNames(orig_to_new_prefix=self.orig_to_new_prefix)


CHECKPOINT_NAMES = CheckpointNames(
    orig_to_new_prefix={
        "model.": "",  # transformers' newer naming: model.language_model..., lm_head
        "language_model.model.": "language_model.",  # the original naming
        "language_model.lm_head.": "lm_head.",
        "vision_model.": "encoder.vision_model.",
        "multi_modal_projector.": "encoder.multi_modal_projector.",
    }
)
