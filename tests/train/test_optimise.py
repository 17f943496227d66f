import pytest
import torch

from mmrag_batch.train.optimise import optimise


@pytest.mark.parametrize("steps", [1, 2, 19, 20, 21, 60])
def test_any_number_of_steps_is_one_cycle_of_the_learning_rate(steps: int) -> None:
    weight = torch.nn.Parameter(torch.ones(1))
    reported: list[int] = []
    optimise(
        [weight],
        lambda: {"loss": weight.square().sum()},
        steps=steps,
        learning_rate=0.01,
        report=lambda **values: reported.append(values["step"]),
    )
    assert reported == [steps]
    assert 0 < weight.item() < 1
