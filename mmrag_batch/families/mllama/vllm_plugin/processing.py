"""Prompts and images -> what vLLM's scheduler and the model take.

All images of a request become ONE multimodal item, so that they are scheduled, encoded and
preempted together. Its placeholder is as long as the real tiles of the last group of adjacent
images, because this is what the tokens after it attend to: the cross-attention cache of a request
holds just that, and vLLM counts a request's encoder tokens by its placeholders.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from transformers import BatchFeature
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil
from vllm.config.multimodal import MultiModalDummyOptions
from vllm.multimodal.hasher import MultiModalHasher
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.parse import ModalityDataItems, MultiModalDataItems, MultiModalDataParser
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseProcessingInfo,
    EncDecMultiModalProcessor,
    PromptReplacement,
    PromptUpdate,
)

from mmrag_batch.families.mllama.vllm_plugin.budget import MAX_IMAGES, step_tokens
from mmrag_batch.families.mllama.vllm_plugin.config import EncoderDecoderMllamaConfig
from mmrag_batch.families.mllama.vllm_plugin.validation import (
    check_images,
    check_present,
    last_group_size,
)
from mmrag_batch.families.mllama.vllm_plugin.versions import check_requests, show_decoder_prompts


@dataclass(frozen=True, slots=True)
class RequestImages:
    """The images of one request, and how many of the last stand next to each other."""

    images: Sequence[Any]
    """PIL images, or vLLM's wrapper of one that keeps the bytes it was decoded from."""
    last_group: int
    hashes: Sequence[str]
    """Of each image's content."""


class RequestImagesItems(ModalityDataItems[Sequence[RequestImages], RequestImages]):
    """The one multimodal item of a request."""

    def __init__(self, data: Sequence[RequestImages]) -> None:
        super().__init__(data, "image")

    def get_count(self) -> int:
        return len(self.data)

    def get(self, index: int) -> RequestImages:
        return self.data[index]

    def get_item_for_hash(self, index: int) -> object:
        item = self.data[index]
        return {"images": list(item.hashes), "last_group": item.last_group}

    def get_processor_data(self) -> Mapping[str, object]:
        return {"images": self.data}

    def get_passthrough_data(self) -> Mapping[str, object]:
        return {}


class MllamaDataParser(MultiModalDataParser):
    """vLLM's parser, which lets through the items that are merged already."""

    def _parse_image_data(self, data: Any) -> Any:
        if isinstance(data, list) and data and isinstance(data[0], RequestImages):
            return RequestImagesItems(data)
        return super()._parse_image_data(data)


class MllamaProcessingInfo(BaseProcessingInfo):
    """Limits and sizes, from the model's configuration."""

    def get_hf_config(self) -> EncoderDecoderMllamaConfig:
        return self.ctx.get_hf_config(EncoderDecoderMllamaConfig)

    def get_data_parser(self) -> MultiModalDataParser:
        return MllamaDataParser()

    def get_image_processor(self) -> MllamaImageProcessorPil:
        """Always the Pillow one, as in training, whether torchvision is installed or not."""
        model = self.ctx.model_config
        return MllamaImageProcessorPil.from_pretrained(
            model.model, revision=model.revision or "main"
        )

    @property
    def skip_prompt_length_check(self) -> bool:
        return True  # of the encoder's prompt, which is bounded by the number of images

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        return {"image": MAX_IMAGES}

    def get_mm_max_tokens_per_item(
        self,
        seq_len: int,  # noqa: ARG002
        mm_counts: Mapping[str, int],  # noqa: ARG002
    ) -> Mapping[str, int]:
        tokens = self.get_hf_config().tokens_per_image
        return {"image": self.allowed_mm_limits["image"] * tokens}


class MllamaDummyInputsBuilder(BaseDummyInputsBuilder[MllamaProcessingInfo]):
    """An item with all images that a step may bring, for vLLM's measurement of memory.

    vLLM asks for one item. Images of one tile take as much room as any and are charged for a
    quarter, and equal ones would be encoded once.
    """

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        return "<|image|>" * self._images(mm_counts)

    def get_dummy_mm_data(
        self,
        seq_len: int,  # noqa: ARG002
        mm_counts: Mapping[str, int],
        mm_options: MultiModalDummyOptions,  # noqa: ARG002
    ) -> dict[str, Any]:
        side = self.info.get_hf_config().vision.image_size
        images = range(self._images(mm_counts))
        return {"image": [Image.new("RGB", (side, side), (number, 0, 0)) for number in images]}

    def _images(self, mm_counts: Mapping[str, int]) -> int:
        config, limit = self.info.get_hf_config(), self.info.allowed_mm_limits["image"]
        tokens = step_tokens(limit * config.tokens_per_image)
        return tokens // config.tokens_per_tile if mm_counts.get("image") else 0


class MllamaMultiModalProcessor(EncDecMultiModalProcessor[MllamaProcessingInfo]):
    """Checks a request's images against its prompt, merges them and makes tiles of them."""

    skip_decoder_start_token = True  # the prompt begins as its chat template says

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.image_token_id: int = self.info.get_hf_config().image_token_index
        self.image_processor = self.info.get_image_processor()
        check_requests("mllama", check_images)
        show_decoder_prompts("mllama")

    def apply(self, inputs: Any, timing_ctx: Any) -> Any:
        items = inputs.mm_data_items.get("image")
        images = items.get_all_items_for_hash() if items is not None else []
        check_present(images)
        last_group = last_group_size(inputs.prompt, self.image_token_id, len(images))
        algorithm = self.info.ctx.get_mm_config().mm_hasher_algorithm
        hashes = [MultiModalHasher.hash_kwargs(algorithm, image=image) for image in images]
        merged = RequestImagesItems([RequestImages(images, last_group, hashes)])
        return super().apply(
            replace(
                inputs,
                mm_data_items=MultiModalDataItems({"image": merged}),
                mm_uuid_items=_merged_uuids(inputs.mm_uuid_items, last_group),
            ),
            timing_ctx,
        )

    def create_encoder_prompt(
        self,
        prompt: list[int],  # noqa: ARG002
        mm_items: MultiModalDataItems,  # noqa: ARG002
    ) -> list[int]:
        return [self.image_token_id]  # one item, which replaces it by its placeholder

    def _call_hf_processor(
        self,
        hf_data: Mapping[str, Any],
        hf_kwargs: Mapping[str, object],  # noqa: ARG002
    ) -> BatchFeature:
        requests: Sequence[RequestImages] = hf_data["images"]
        images = [[getattr(image, "media", image) for image in r.images] for r in requests]
        processed = self.image_processor([image for row in images for image in row])
        tiles = [n for row in processed["num_tiles"] for n in row]
        pixels = torch.from_numpy(processed["pixel_values"]).flatten(0, 1)
        return BatchFeature(
            {
                # Real tiles only: padding is all zeros, and three quarters of a small image.
                "pixel_values": torch.cat([p[:n] for p, n in zip(pixels, tiles)]).to(
                    self.info.ctx.model_config.dtype
                ),
                "aspect_ratio_ids": torch.from_numpy(processed["aspect_ratio_ids"]).flatten(),
                "num_tiles": torch.tensor(tiles),
                "image_hashes": torch.tensor([_short(h) for r in requests for h in r.hashes]),
                "num_images": torch.tensor([len(row) for row in images]),
            }
        )

    def _get_mm_fields_config(
        self,
        hf_inputs: BatchFeature,
        hf_processor_mm_kwargs: Mapping[str, object],  # noqa: ARG002
    ) -> Mapping[str, MultiModalFieldConfig]:
        images = hf_inputs["num_images"]
        tiles = torch.stack([t.sum() for t in hf_inputs["num_tiles"].split(images.tolist())])
        flat = MultiModalFieldConfig.flat_from_sizes
        return {
            "pixel_values": flat("image", tiles),
            "aspect_ratio_ids": flat("image", images),
            "num_tiles": flat("image", images, keep_on_cpu=True),
            "image_hashes": flat("image", images, keep_on_cpu=True),
            "num_images": MultiModalFieldConfig.batched("image", keep_on_cpu=True),
        }

    def _get_prompt_updates(
        self,
        mm_items: MultiModalDataItems,
        hf_processor_mm_kwargs: Mapping[str, object],  # noqa: ARG002
        out_mm_kwargs: Any,
    ) -> Sequence[PromptUpdate]:
        per_tile = self.info.get_hf_config().tokens_per_tile

        def placeholder(item: int) -> list[int]:
            last_group = mm_items["image"][item].last_group
            num_tiles = out_mm_kwargs["image"][item]["num_tiles"].data
            return [self.image_token_id] * int(num_tiles[-last_group:].sum() * per_tile)

        return [PromptReplacement("image", [self.image_token_id], placeholder)]


def _short(digest: str) -> int:
    """The first 63 bits of a hexadecimal digest: a key that fits a tensor."""
    return int(digest[:16], 16) >> 1


def _merged_uuids(uuids: Any, last_group: int) -> Any:
    """One name for the merged item where the caller has named each image."""
    named = (uuids or {}).get("image")
    if not named or None in named:
        return None
    return {"image": [f"{'+'.join(named)}/{last_group}"]}
