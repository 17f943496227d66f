"""The retriever's two towers: the one torch definition.

A tower maps what a side has (an image embedding, a text embedding, or both) to one unit vector. It
starts out as the plain mean of the frozen embeddings, so an untrained retriever is zero-shot
ImageBind, and training can only improve on it.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from mmrag_batch.errors import MissingError

CONFIG = "config.json"
WEIGHTS = "model.safetensors"


@dataclass(frozen=True, slots=True)
class TowersConfig:
    """Sizes of both towers."""

    embedding_size: int
    hidden_size: int


class Tower(nn.Module):
    """A gated residual MLP over the modalities that are present."""

    def __init__(self, config: TowersConfig) -> None:
        super().__init__()
        size = config.embedding_size
        self.mlp = nn.Sequential(
            nn.Linear(3 * size + 2, config.hidden_size),
            nn.GELU(),
            nn.Linear(config.hidden_size, config.hidden_size),
            nn.GELU(),
            nn.Linear(config.hidden_size, size),
        )
        last = self.mlp[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.gate = nn.Parameter(torch.ones(size))

    def forward(self, embeddings: Tensor, present: Tensor) -> Tensor:
        """Embeddings (B, 2, D) of image and text, and which are present (B, 2), as 0 or 1, to unit
        vectors (B, D). What an absent modality holds changes nothing."""
        embeddings = embeddings * present[..., None]
        mean = F.normalize(embeddings.sum(dim=1), dim=-1)  # (B, D)
        product = embeddings[:, 0] * embeddings[:, 1]  # how the two agree, by dimension
        features = torch.cat([embeddings.flatten(1), product, present], dim=1)
        return F.normalize(mean + torch.tanh(self.gate) * self.mlp(features), dim=-1)


class Towers(nn.Module):
    """The towers of questions and documents, and the learned temperature of their cosine."""

    def __init__(self, config: TowersConfig) -> None:
        super().__init__()
        self.config = config
        self.question = Tower(config)
        self.document = Tower(config)
        self.log_temperature = nn.Parameter(torch.tensor(1 / 0.07).log())

    @property
    def temperature(self) -> Tensor:
        """The factor on the cosine of a question and a document, at most 100."""
        return self.log_temperature.exp().clamp(max=100)


def untrained_towers(embedding_size: int) -> Towers:
    """Towers that are the encoders alone, in as few weights as can be and the same each time: a
    vector is the mean of what is present, a score the plain cosine."""
    towers = Towers(TowersConfig(embedding_size, hidden_size=1))
    for parameter in towers.parameters():
        nn.init.zeros_(parameter)  # the gate is shut, and the temperature 1
    return towers.eval()


def save_towers(towers: Towers, directory: Path) -> None:
    """Write `model.safetensors` and `config.json`."""
    directory.mkdir(parents=True, exist_ok=True)
    save_file(dict(towers.state_dict()), directory / WEIGHTS)
    (directory / CONFIG).write_text(json.dumps(asdict(towers.config), indent=2) + "\n")


def load_towers(directory: Path) -> Towers:
    """The towers that `save_towers` wrote, in eval mode. Raises MissingError."""
    try:
        config = TowersConfig(**json.loads((directory / CONFIG).read_text()))
        tensors = load_file(directory / WEIGHTS)
    except FileNotFoundError as error:
        raise MissingError(f"{directory} holds no towers: {error.filename} is missing.") from None
    towers = Towers(config)
    towers.load_state_dict(tensors)
    return towers.eval()
