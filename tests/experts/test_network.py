"""Network and loss of an expert."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from boltzformer_monai.errors import CheckpointError
from boltzformer_monai.experts.network import ExpertDescription, ExpertLoss, ExpertNetwork, load_expert
from boltzformer_monai.experts.settings import ExpertSettings
from boltzformer_monai.experts.train import PseudoDice
from boltzformer_monai.networks.weights import load_checkpoint, save_checkpoint
from tests.experts.test_plan import planned


@pytest.mark.parametrize(("dimensions", "outputs"), [(3, 2), (2, 2)])
def test_every_level_has_an_output_in_training(dimensions: int, outputs: int) -> None:
    plan = planned((32, 32, 32), (1.0, 1.0, 1.0), dimensions=dimensions, filters=2, budget=2**16, targets=("a", "b"))
    network = ExpertNetwork(plan)
    image = torch.randn(2, 1, *plan.patch)
    found = network.train()(image)
    assert isinstance(found, list)
    assert len(found) == plan.outputs == outputs
    assert [tuple(each.shape) for each in found] == [
        (2, 2, *(edge // 2**level for edge in plan.patch)) for level in range(outputs)
    ]
    whole = network.eval()(image)
    assert isinstance(whole, torch.Tensor)
    assert whole.shape == (2, 2, *plan.patch)
    ExpertLoss()(found, torch.zeros(2, 2, *plan.patch)).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_the_loss_is_dice_and_bce_of_all_levels_by_weight() -> None:
    masks = torch.zeros(2, 1, 4, 4)
    masks[0, 0, :2, :2] = 1
    fine, coarse = torch.zeros(2, 1, 4, 4), torch.full((2, 1, 2, 2), -50.0)
    coarse[0, 0, 0, 0] = 50.0
    half = 1 - (2 * 0.5 * 4) / (0.5 * 32 + 4) + math.log(2)  # everywhere 0.5: of the batch, not of each example
    found = ExpertLoss()([fine, coarse], masks)
    assert float(found) == pytest.approx((half + 0.0) / 1.5, abs=1e-4)
    assert float(ExpertLoss()(fine, masks)) == pytest.approx(half, abs=1e-4)


def test_pseudo_dice_is_of_all_patches_together() -> None:
    dice = PseudoDice()
    logits, masks = torch.full((2, 3, 4, 4), -1.0), torch.zeros(2, 3, 4, 4)
    masks[0, 0, 0] = masks[1, 0, 0] = 1  # 8 pixels
    logits[0, 0, 0] = 1  # 4 of them, in the first patch
    logits[0, 1, 0, 0] = 1  # no such target; the third is neither there nor predicted
    dice.update((logits[:1], masks[:1]))
    dice.update((logits[1:], masks[1:]))
    assert dice.compute() == pytest.approx((2 * 4 / 12 + 0) / 2)
    dice.reset()
    assert math.isnan(dice.compute())


def test_checkpoints_come_back_and_others_are_refused(tmp_path: Path) -> None:
    plan = planned((32, 32, 32), (1.0, 1.0, 1.0), filters=2, budget=2**16)
    network = ExpertNetwork(plan)
    description = ExpertDescription(plan, ExpertSettings(), {"training_data": {}})
    content = {"model": network.state_dict(), "description": description.state_dict()}
    save_checkpoint(content, tmp_path / "model.pt")
    found, same, data = load_expert(tmp_path / "model.pt", device=torch.device("cpu"))
    assert (same, data) == (plan, {"training_data": {}})
    image = torch.randn(1, 1, *plan.patch)
    assert torch.equal(found(image), network.eval()(image))
    with pytest.raises(CheckpointError, match="not a BoltzFormer checkpoint.*boltzformer-expert"):
        load_checkpoint(tmp_path / "model.pt")
    save_checkpoint({"model": {}, "description": {"format": "boltzformer-checkpoint"}}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="no expert's checkpoint"):
        load_expert(tmp_path / "other.pt", device=torch.device("cpu"))
    del content["model"]["unet.output_block.conv.conv.bias"]
    save_checkpoint(content, tmp_path / "cut.pt")
    with pytest.raises(CheckpointError, match="output_block"):
        load_expert(tmp_path / "cut.pt", device=torch.device("cpu"))
