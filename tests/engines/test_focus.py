"""What is measured of the sampling in an evaluation: sets as drawn, on the target's patches; V of another patient."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import Dataset
from torch import Tensor
from torch.nn import functional as F

from boltzformer_monai.data.slices.reader import SliceReader, read_png
from boltzformer_monai.engines import AveragingInferer, evaluation_items, evaluation_transform
from boltzformer_monai.engines.data import collate_slices
from boltzformer_monai.engines.focus import MeasureFocus
from boltzformer_monai.errors import ConfigError
from boltzformer_monai.networks import BoltzFormer, CounterNoise, Decoded
from boltzformer_monai.transforms import PromptTokenizer
from boltzformer_monai.transforms.load import slice_fit
from tests.engines.cases import write_dataset
from tests.networks.cases import images, small_network


def measured(
    network: BoltzFormer, root: Path, count: int, *, logit: float = 0.0, noise: Any = None
) -> tuple[MeasureFocus, Any]:
    """Scores of the first slices of two patients in training, two slices each."""
    reader = SliceReader(root)
    transform = evaluation_transform(reader, tokenizer=PromptTokenizer(), size=64)
    dataset = Dataset(evaluation_items(reader, split="train"), transform)
    evaluator: Any = SimpleNamespace(
        network=network,
        data_loader=SimpleNamespace(dataset=dataset),
        state=SimpleNamespace(device=torch.device("cpu")),
    )
    measure = MeasureFocus(evaluator, root=root, size=64, logit=logit, noise=noise)
    batch = collate_slices([dataset[index] for index in range(count)])
    measure.measure_batch(SimpleNamespace(state=SimpleNamespace(batch=batch)))  # type: ignore[arg-type]
    return measure, dataset


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("focus") / "slices")


@torch.no_grad()
def test_scores_are_those_of_the_network(root: Path):
    network = small_network(sample_ratio=0.3, mask_bias=0.0)
    _, dataset = measured(network, root, 1)
    first = dataset[0]
    own = network.decode(network.encode_image(first["image"][None]), network.encode_text(first["tokens"][None])).logits
    place = [row.target for row in first["rows"]].index("liver")
    logit = float(own[0, place].quantile(0.1))  # most of the slice is in the mask
    measure, dataset = measured(network, root, 3, logit=logit)
    assert [(score.image.split("_")[0], score.target) for score in measure.scores] == [
        ("images/case1", "liver"), ("images/case1", "spleen"), ("images/case1", "viscera"),
        ("images/case1", "liver"), ("images/case1", "viscera"),
        ("images/case2", "liver"), ("images/case2", "spleen"), ("images/case2", "viscera"),
    ]  # fmt: skip  # neither stomach, nor spleen in the second slice
    item, other = dataset[0], dataset[2]
    assert {row.patient for row in item["rows"]} != {row.patient for row in other["rows"]}
    text = network.encode_text(item["tokens"][None])
    features, others = (network.encode_image(each["image"][None]) for each in (item, other))
    swapped = dataclasses.replace(features, levels=others.levels)
    truth = np.isin(read_png(item["rows"][0].label), 1)
    fit = slice_fit(truth.shape, item["rows"][0], 64)
    square = fit.label(torch.from_numpy(truth)[None, None].float())
    score = measure.scores[0]
    for features_of, found in ((features, score.dice), (swapped, score.swapped_dice)):
        mask = (fit.restore(network.decode(features_of, text).logits)[0, place] > logit).numpy()
        assert found == pytest.approx(2 * (mask & truth).sum() / (mask.sum() + truth.sum()))
    assert score.area_fraction == pytest.approx(100 / 1024)
    sets = network.attention_sets(features, text, drawn=True)
    assert len(score.layers) == len(sets) == 4
    for layer, drawn in zip(score.layers, sets, strict=True):
        on_target = F.adaptive_max_pool2d(square, drawn.shape[-2:])[0, 0] > 0
        of_prompt = drawn[0, place].flatten(1)
        assert layer.by_chance == pytest.approx(float(on_target.float().mean()))
        assert layer.empty == pytest.approx(float((~of_prompt.any(1)).float().mean()))
        attended = (of_prompt | ~of_prompt.any(1, keepdim=True)).float()
        shares = attended[:, on_target.flatten()].sum(1) / attended.sum(1)
        assert layer.on_target == pytest.approx(float(shares.mean()))


def test_a_decoder_without_sets_is_judged_by_its_gate_alone(root: Path):
    network = small_network()

    class Blind(torch.nn.Module):
        def forward(self, image: Any, text: Any, *, generator: Any = None) -> Any:
            values = image.levels[2].mean(1, keepdim=True)
            logits = (values - values.mean((2, 3), keepdim=True)).expand(-1, text.tokens.shape[1], -1, -1)
            return Decoded(F.interpolate(logits, scale_factor=4.0))

    network.decoder = Blind()
    measure, _ = measured(network, root, 2)
    assert len(measure.scores) == 5
    assert all(score.layers == () and score.swapped_dice is not None for score in measure.scores)
    assert any(score.dice != score.swapped_dice for score in measure.scores)


def test_fresh_draws_are_those_that_the_focus_is_measured_of(root: Path):
    network = small_network(sample_ratio=0.3, mask_bias=0.0)
    shared, _ = measured(network, root, 2)
    default, _ = measured(network, root, 2, noise=AveragingInferer().noise)
    fresh, _ = measured(network, root, 2, noise=AveragingInferer(fresh_draws=True).noise)
    assert [score.layers for score in default.scores] == [score.layers for score in shared.scores]
    assert [score.layers for score in fresh.scores] != [score.layers for score in shared.scores]
    other, _ = measured(network, root, 1, noise=AveragingInferer(fresh_draws=True).noise)  # whatever the batch
    assert other.scores[0].layers == fresh.scores[0].layers


def test_fresh_draws_belong_to_the_slice_whatever_the_batch():
    seen: list[Tensor] = []

    def network(inputs: Tensor, *args: Any, generator: Any = None, **kwargs: Any) -> None:
        seen.append(generator)

    several = images(3)
    AveragingInferer()(several, network)
    assert seen.pop() is None
    inferer = AveragingInferer(fresh_draws=True)
    inferer(several, network)
    inferer(several[1:2], network)
    together, alone = (noise.seed for noise in seen)
    assert isinstance(seen[0], CounterNoise)
    assert together.unique().numel() == 3
    assert int(together.min()) >= 0
    assert int(together.max()) < 2**31
    assert torch.equal(together[1:2], alone)
    with pytest.raises(ConfigError, match="fresh_draws must be True or False, got 'no'"):
        AveragingInferer(fresh_draws="no")  # type: ignore[arg-type]
