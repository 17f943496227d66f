"""Token ids and images -> the tensors that `MllamaForConditionalGeneration.forward` takes.

One function for training and for predicting, so that both see the same inputs.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil
from transformers.models.mllama.processing_mllama import (
    convert_sparse_cross_attention_mask_to_dense,
    get_cross_attention_token_mask,
)

from mmrag_batch.families.family import pad_left

if TYPE_CHECKING:
    from PIL.Image import Image


def load_image_processor(generator_dir: Path) -> MllamaImageProcessorPil:
    """The image processor of a generator directory.

    Always the Pillow one: which one the automatic class takes depends on whether torchvision is
    installed, and an answer must not.
    """
    return MllamaImageProcessorPil.from_pretrained(generator_dir, local_files_only=True)


def collate(
    token_ids: Sequence[Sequence[int]],
    images: Sequence[Sequence["Image"]],
    image_processor: MllamaImageProcessorPil,
    pad_id: int,
    image_token_id: int,
) -> dict[str, torch.Tensor]:
    """One left-padded batch: B rows of up to L tokens, each with N images of up to T tiles.

    input_ids, attention_mask, position_ids: (B, L) int64. With images also pixel_values
    (B, N, T, 3, S, S) float32, aspect_ratio_ids (B, N), aspect_ratio_mask (B, N, T) and
    cross_attention_mask (B, L, N, T) int64.

    All rows must have the same number of images (ValueError otherwise), one image token for each.
    Mllama lets the tokens before the first image attend to every tile of the batch, padding
    included, and masks only the MLP there. A row padded up to a neighbour's number of images would
    get another answer than alone.
    """
    counts = {len(row) for row in images}
    if len(counts) != 1 or len(images) != len(token_ids):
        raise ValueError(f"rows of one batch must have equally many images, not {sorted(counts)}")
    for row, row_images in zip(token_ids, images):
        if list(row).count(image_token_id) != len(row_images):
            raise ValueError(f"{len(row_images)} images, but another number of image tokens")

    padded, attended = pad_left(token_ids, pad_id)
    attention_mask = torch.tensor(attended)
    inputs = {
        "input_ids": torch.tensor(padded),
        "attention_mask": attention_mask,
        "position_ids": (attention_mask.cumsum(dim=1) - 1).clamp(min=0),
    }
    if counts != {0}:
        inputs |= _image_inputs(padded, images, image_processor, image_token_id)
    return inputs


def _image_inputs(
    padded: list[list[int]],
    images: Sequence[Sequence["Image"]],
    image_processor: MllamaImageProcessorPil,
    image_token_id: int,
) -> dict[str, torch.Tensor]:
    """The image tensors; `padded` rows put the cross-attention spans after the left padding."""
    rows: Any = [list(row) for row in images]  # its annotation leaves out nested lists
    processed = image_processor(rows, return_tensors="pt")
    cross_attention_mask = convert_sparse_cross_attention_mask_to_dense(
        [get_cross_attention_token_mask(row, image_token_id) for row in padded],
        num_tiles=processed["num_tiles"],
        max_num_tiles=image_processor.max_image_tiles,
        length=len(padded[0]),
    )
    names = ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")
    return {
        **{name: processed[name] for name in names},
        "cross_attention_mask": torch.from_numpy(cross_attention_mask),
    }
