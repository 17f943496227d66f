"""Mllama's configuration as vLLM needs it: an encoder-decoder with room for the image token.

A plain checkpoint's config.json loads; no overrides.
"""

from typing import Any

from transformers import MllamaConfig, MllamaTextConfig, MllamaVisionConfig

EXTRA_TOKENS = 8
"""Rows of the embedding beyond the head's: transformers' `nn.Embedding(vocab_size + 8, ...)`."""


class WidenedTextConfig(MllamaTextConfig):
    """The text model's configuration with the vocabulary of the embedding.

    The image token's id equals the size of the output head. Whatever vLLM sizes by the vocabulary
    (prompt log-probabilities, token masks) must have room for it, or it reads out of bounds and the
    engine dies.
    """

    head_size: int = 0
    """Size of the output head: the checkpoint's `vocab_size`."""
    max_target_positions: int | None = None
    """The longest decoder sequence; vLLM's word for it in encoder-decoders."""

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if not self.head_size:  # a config that was written and read again is wide already
            self.head_size = self.vocab_size
            self.vocab_size += EXTRA_TOKENS
        self.max_target_positions = self.max_position_embeddings


class EncoderDecoderMllamaConfig(MllamaConfig):
    """Mllama's configuration, with the vision tower as the encoder."""

    sub_configs = {"text_config": WidenedTextConfig, "vision_config": MllamaVisionConfig}  # noqa: RUF012  # as in its base
    is_encoder_decoder: bool = True
    max_source_positions: int | None = None
    """Encoder length for which CUDA graphs are captured: that of one image, until `EncoderBudget`
    sees how many images a request may have."""

    def __post_init__(self, **kwargs: Any) -> None:
        if isinstance(self.text_config, dict) or self.text_config is None:
            self.text_config = WidenedTextConfig(**(self.text_config or {}))
        super().__post_init__(**kwargs)
        self.is_encoder_decoder = True
        self.max_source_positions = self.tokens_per_image

    @property
    def text(self) -> WidenedTextConfig:
        """The text model's configuration."""
        assert isinstance(self.text_config, WidenedTextConfig)
        return self.text_config

    @property
    def vision(self) -> MllamaVisionConfig:
        """The vision tower's configuration."""
        assert isinstance(self.vision_config, MllamaVisionConfig)
        return self.vision_config

    @property
    def tokens_per_tile(self) -> int:
        """Encoder tokens of one tile: its patches and a class token. 1,601 in the 11B."""
        size, patch = self.vision.image_size, self.vision.patch_size
        assert isinstance(size, int) and isinstance(patch, int)
        return (size // patch) ** 2 + 1

    @property
    def tokens_per_image(self) -> int:
        """Encoder tokens of all tiles that an image may have."""
        return self.vision.max_num_tiles * self.tokens_per_tile
