"""Token ids and images -> the tensors that a model's `forward` takes, by its processor.

One function for training and for predicting, so that both see the same inputs.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from mmrag_batch.families.family import Family, expand, pad_left

if TYPE_CHECKING:
    from PIL.Image import Image

KINDS = "mm_token_type_ids"
"""Which tokens are of an image, for models that place them in two dimensions."""


def collate(
    family: Family,
    processor: Any,
    token_ids: Sequence[Sequence[int]],
    images: Sequence[Sequence["Image"]],
    *,
    pad_id: int,
) -> dict[str, torch.Tensor]:
    """One left-padded batch: B rows of up to L tokens, those of their images included.

    input_ids, attention_mask and, where the processor tells them, mm_token_type_ids: (B, L) int64.
    What else there is comes from the processor, to which each image is a row of its own, as to
    vLLM. Raises ValueError where images and placeholders are not equally many, and where the
    processor makes other tokens of an image than of a blank one of its size.
    """
    rows = [expand(family, ids, of_row) for ids, of_row in zip(token_ids, images, strict=True)]
    padded, mask = pad_left(rows, pad_id)
    inputs = {"input_ids": torch.tensor(padded), "attention_mask": torch.tensor(mask)}
    shown = [image for of_row in images for image in of_row]
    if not shown:
        return inputs
    processed = processor(
        text=[family.placeholder] * len(shown),
        images=[[image] for image in shown],
        add_special_tokens=False,
        padding=True,
        return_tensors="pt",
    )
    attended = processed.pop("attention_mask").bool()
    made = [ids[kept].tolist() for ids, kept in zip(processed.pop("input_ids"), attended)]
    if made != [list(family.image_ids(image.size)) for image in shown]:
        raise ValueError("the processor makes other tokens of an image than of a blank one")
    if KINDS in processed:
        processed[KINDS] = torch.tensor(processor.create_mm_token_type_ids(padded))
    return {**inputs, **processed}
