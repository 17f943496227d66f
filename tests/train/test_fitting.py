import math
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mmrag_batch.train import fitting, negatives
from mmrag_batch.train.data import EmbeddedTable
from mmrag_batch.train.fitting import Fit, FitSettings
from mmrag_batch.train.negatives import mine_negatives
from mmrag_batch.train.ranking import Ranking, rank, ranks, vectors
from mmrag_batch.train.retriever import split
from mmrag_batch.train.towers import Towers, TowersConfig

MARGIN = 0.7
SETTINGS: dict[str, Any] = {
    "epochs": 8,
    "batch_size": 20,
    "learning_rate": 3e-3,
    "hard_negatives": 0,
    "patience": 8,
    "soft": False,
    "seed": 0,
}


def separable(count: int) -> EmbeddedTable:
    """Questions with five documents each, of which the one that helps points up in dimension 0."""
    random = torch.Generator().manual_seed(0)
    shares = torch.zeros(count, 5)
    shares[torch.arange(count), torch.randint(5, (count,), generator=random)] = 1
    documents = torch.randn(count, 5, 12, generator=random)
    documents[..., 0] = torch.where(shares > 0, 1.5, -1.5)
    questions = torch.randn(count, 12, generator=random)
    questions[:, 0] = 0
    found = F.normalize(torch.cat([questions, documents.flatten(0, 1)]), dim=1)
    rows = torch.arange(1, len(found) + 1)
    sides = torch.stack([torch.zeros_like(rows), rows], dim=1)
    return EmbeddedTable(
        vectors=F.pad(found, (0, 0, 1, 0)).numpy(),
        questions=sides[:count],
        documents=sides[count:],
        counts=torch.full((count,), 5),
        shares=shares.flatten(),
        numbers=torch.arange(count),
    )


class Fitted:
    """A fit of new towers to separable questions, and what it reports."""

    def __init__(self, folder: Path, **settings: object) -> None:
        torch.manual_seed(0)
        self.towers = Towers(TowersConfig(12, 32))
        self.held_out, trained = split(separable(240), 0.25, seed=0)
        self.reports: list[dict[str, float]] = []
        given = FitSettings(**{**SETTINGS, **settings})
        self.fit = Fit(self.towers, trained, self.held_out, given, folder / "checkpoint.pt")

    def report(self, **figures: float) -> None:
        self.reports.append(figures)

    def run(self) -> "Fitted":
        self.fit.run(self.report)
        return self

    @property
    def weights(self) -> list[list[float]]:
        return [parameter.flatten().tolist() for parameter in self.towers.parameters()]


@pytest.mark.parametrize("settings", [{}, {"soft": True}, {"hard_negatives": 3}])
def test_training_beats_the_untrained_towers(tmp_path: Path, settings: dict[str, Any]) -> None:
    fitted = Fitted(tmp_path, **settings).run()
    assert fitted.reports[0]["recall_at_1"] < 0.5
    assert rank(fitted.towers, fitted.held_out).recall_at_1 > 0.9
    assert fitted.reports[-1]["loss"] < fitted.reports[1]["loss"]


def test_the_best_epoch_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([0.2, 0.4, 0.7, 0.7, 0.5])
    fitted = Fitted(tmp_path, epochs=4)
    seen = []

    def judged(towers: Towers, table: EmbeddedTable) -> Ranking:
        seen.append(fitted.weights)
        return Ranking(0.0, next(scores))

    monkeypatch.setattr(fitting, "rank", judged)
    fitted.run()
    assert fitted.weights == seen[2]
    assert fitted.weights != seen[3]


def test_training_stops_when_no_epoch_is_better(tmp_path: Path) -> None:
    fitted = Fitted(tmp_path, learning_rate=1e-9, patience=2, epochs=50).run()
    mrr = [report["mrr"] for report in fitted.reports]
    assert len(mrr) < 10
    assert max(mrr) == mrr[-3] or len(mrr) == 3


class KilledError(Exception):
    pass


@pytest.mark.parametrize("epoch", [1, 4])
def test_a_fit_that_was_killed_ends_as_it_would_have(tmp_path: Path, epoch: int) -> None:
    whole = Fitted(tmp_path / "none", hard_negatives=2)
    (tmp_path / "none").mkdir()
    whole.run()
    torn = Fitted(tmp_path, hard_negatives=2)

    def report(**figures: float) -> None:
        if figures["epoch"] == epoch + 1:
            raise KilledError
        torn.report(**figures)

    with pytest.raises(KilledError):
        torn.fit.run(report)
    again = Fitted(tmp_path, hard_negatives=2).run()
    assert [*torn.reports, *again.reports] == whole.reports
    assert again.weights == whole.weights


@pytest.fixture
def mined(monkeypatch: pytest.MonkeyPatch) -> tuple[Towers, EmbeddedTable, Tensor]:
    """Towers, a table, and the negatives beyond a margin that leaves some questions too few."""
    monkeypatch.setattr(negatives, "CHUNK", 7)
    monkeypatch.setattr(negatives, "MARGIN", MARGIN)
    torch.manual_seed(0)
    towers, table = Towers(TowersConfig(12, 8)).eval(), separable(20)
    return towers, table, mine_negatives(towers, table, 4, torch.Generator().manual_seed(0))


def test_negatives_are_the_closest_of_other_rows_below_the_margin(
    mined: tuple[Towers, EmbeddedTable, Tensor],
) -> None:
    towers, table, found = mined
    with torch.inference_mode():
        questions, documents = vectors(towers, table)
    for number in range(20):
        scores = documents @ questions[number]
        own = table.owner == number
        limit = scores[own & (table.shares > 0)].max() - MARGIN
        allowed = [i for i in range(100) if not own[i] and scores[i] <= limit]
        allowed.sort(key=lambda i: -scores[i].item())
        expected = allowed[:4] + [-1] * (4 - len(allowed[:4]))
        assert found[number].tolist() == expected
    assert (found < 0).any()
    assert (found >= 0).any()


def test_no_negative_has_the_contents_of_an_own_document() -> None:
    """A second document that helps, less close than the first one, stands in other rows as well;
    of a third nothing is known; the first question and the last one are equal."""
    torch.manual_seed(0)
    towers, table = Towers(TowersConfig(12, 8)).eval(), separable(20)
    table.documents[4::5] = table.documents[4]  # the last of each row is the same
    table.documents[3::10] = table.documents[3]
    table.shares[4] = table.shares[:5].max()
    table.shares[13] = math.nan
    table.questions[19] = table.questions[0]
    found = mine_negatives(towers, table, 100, torch.Generator().manual_seed(0))
    contents = table.contents(table.documents)
    for number in range(20):
        kept = found[number][found[number] >= 0]
        assert len(kept)
        own = (table.owner == number) | ((number in (0, 19)) & ((table.owner % 19) == 0))
        assert not set(contents[kept].tolist()) & set(contents[own].tolist())
    assert 13 not in found.flatten().tolist()


def test_what_is_not_known_changes_neither_ranks_nor_losses(tmp_path: Path) -> None:
    """Documents that may help are there for nothing but to be no negatives."""
    table = separable(60)
    closest = table.questions[:, None]  # each question is its own closest document
    more = EmbeddedTable(
        vectors=table.vectors,
        questions=table.questions,
        documents=torch.cat([table.documents.view(60, 5, 2), closest], dim=1).flatten(0, 1),
        counts=table.counts + 1,
        shares=F.pad(table.shares.view(60, 5), (0, 1), value=math.nan).flatten(),
        numbers=table.numbers,
    )
    losses, found_ranks = [], []
    for one in (table, more):
        torch.manual_seed(0)
        towers = Towers(TowersConfig(12, 32))
        found_ranks.append(ranks(towers.eval(), one).tolist())
        for soft in (True, False):
            settings = FitSettings(**{**SETTINGS, "soft": soft})
            fit = Fit(deepcopy(towers), one, one, settings, tmp_path / "none")
            losses.append(fit.train_epoch())
    assert found_ranks[0] == found_ranks[1]
    assert losses[:2] == pytest.approx(losses[2:])


def test_negatives_come_from_a_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(negatives, "POOL", 3)
    towers, table = Towers(TowersConfig(12, 8)).eval(), separable(20)
    found = mine_negatives(towers, table, 9, torch.Generator().manual_seed(0))
    assert found.shape == (20, 3)
    assert len(set(found.flatten().tolist()) - {-1}) <= 3
