from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mmrag_batch.errors import MissingError
from mmrag_batch.train.towers import Tower, Towers, TowersConfig, load_towers, save_towers

CONFIG = TowersConfig(embedding_size=8, hidden_size=16)


@pytest.fixture
def trained() -> Tower:
    """A tower whose network outputs something."""
    torch.manual_seed(0)
    tower = Tower(CONFIG)
    for parameter in tower.parameters():
        torch.nn.init.normal_(parameter)
    return tower


@pytest.fixture
def embeddings() -> Tensor:
    """(4, 2, 8) unit vectors."""
    return F.normalize(torch.randn(4, 2, 8, generator=torch.Generator().manual_seed(1)), dim=-1)


@pytest.mark.parametrize("present", [(1.0, 1.0), (1.0, 0.0), (0.0, 1.0)])
def test_an_untrained_tower_is_the_mean_of_what_is_present(
    embeddings: Tensor, present: tuple[float, float]
) -> None:
    mask = torch.tensor(present)
    mean = (embeddings * mask[:, None]).sum(dim=1) / mask.sum()
    found = Tower(CONFIG)(embeddings, mask.expand(4, 2))
    torch.testing.assert_close(found, F.normalize(mean, dim=-1))


def test_a_trained_tower_gives_unit_vectors_of_its_own(trained: Tower, embeddings: Tensor) -> None:
    present = torch.ones(4, 2)
    found = trained(embeddings, present)
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(4))
    assert (found - Tower(CONFIG)(embeddings, present)).abs().max() > 0.1


@pytest.mark.parametrize("absent", [0, 1])
def test_what_an_absent_modality_holds_changes_nothing(
    trained: Tower, embeddings: Tensor, absent: int
) -> None:
    present = torch.ones(4, 2)
    present[:, absent] = 0
    other = embeddings.clone()
    other[:, absent] = 7
    assert torch.equal(trained(embeddings, present), trained(other, present))
    assert not torch.equal(trained(embeddings, torch.ones(4, 2)), trained(embeddings, present))


def test_training_reaches_an_untrained_tower(embeddings: Tensor) -> None:
    tower = Tower(CONFIG)
    tower(embeddings, torch.ones(4, 2))[:, 0].sum().backward()
    last = tower.mlp[-1].weight.grad
    assert isinstance(last, Tensor)
    assert last.abs().sum() > 0


def test_the_temperature_stays_below_a_hundred() -> None:
    towers = Towers(CONFIG)
    assert towers.temperature.item() == pytest.approx(1 / 0.07)
    torch.nn.init.constant_(towers.log_temperature, 9.0)
    assert towers.temperature.item() == 100


def test_saved_towers_load_as_they_were(embeddings: Tensor, tmp_path: Path) -> None:
    towers = Towers(CONFIG)
    for parameter in towers.parameters():
        torch.nn.init.uniform_(parameter)
    save_towers(towers, tmp_path)
    loaded = load_towers(tmp_path)
    present = torch.ones(4, 2)
    assert loaded.config == CONFIG
    assert not loaded.training
    assert torch.equal(loaded.document(embeddings, present), towers.document(embeddings, present))


def test_missing_towers_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"config\.json is missing"):
        load_towers(tmp_path)
