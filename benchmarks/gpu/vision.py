"""Images a second of the 11B's vision tower in bfloat16: as transformers runs it, and as we do.

    python -m benchmarks.gpu.vision [--small]

Weights are random; `--small` tries the script on a CPU.
"""

from copy import deepcopy
from statistics import median
from time import perf_counter
from typing import Any

import torch
import typer
from transformers.models.mllama.configuration_mllama import MllamaVisionConfig
from transformers.models.mllama.modeling_mllama import MllamaVisionModel

from mmrag_batch.families.mllama.vision import prepare_vision

CASES = ((4, 1), (4, 5), (1, 5))
"""Tiles of an image, and images at once."""
TILES = 4
ROUNDS = 5


def tower(*, small: bool) -> Any:
    """transformers' defaults are the published model's, but for the size of a tile."""
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 2, "num_global_layers": 1, "image_size": 56}
    layers = {"intermediate_layers_indices": [0, 1], "vision_output_dim": 3 * 1280}
    config = MllamaVisionConfig(**(sizes | layers if small else {"image_size": 560}))
    config._attn_implementation = "sdpa"
    with torch.device("cpu" if small else "cuda"):
        model = MllamaVisionModel(config)
    for name, parameter in model.named_parameters():
        if name.endswith("gate"):
            torch.nn.init.constant_(parameter, 0.5)
    return model.bfloat16().train(False)


@torch.inference_mode()
def main(small: bool = False) -> None:
    """Time both on each case, and say how far apart they are, beside what rounding alone does."""
    theirs = tower(small=small)
    ours = deepcopy(theirs)
    prepare_vision(ours)
    device, side = theirs.device, 56 if small else 560
    for tiles, images in CASES:
        pixels = torch.randn(images, 1, TILES, 3, side, side, device=device).bfloat16()
        pixels[:, :, tiles:] = 0
        ids = torch.full((images, 1), 6 if tiles == TILES else 1, device=device)
        real = (torch.arange(TILES, device=device) < tiles).long().expand(images, 1, TILES)
        shown, found = [], []
        for model in (theirs, ours):
            seconds = []
            for _ in range(ROUNDS + 1):
                started = perf_counter()
                output = model(pixels, ids, real).last_hidden_state
                sums = output.float().sum().item()  # waits for the GPU
                seconds.append(perf_counter() - started)
            assert sums == sums, "not a number"
            found.append(output.float())
            shown.append(f"{images / median(seconds[1:]):.1f}")
        spread, apart = found[0].std().item(), (found[0] - found[1]).abs().mean().item()
        typer.echo(
            f"VISION {images} image(s) of {tiles} tile(s): {shown[0]} images/s with a mask, "
            f"{shown[1]} without; {apart / spread:.1e} of the spread apart"
        )


if __name__ == "__main__":
    typer.run(main)
