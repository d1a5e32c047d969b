from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from boltzformer_monai.data.slices.reader import SliceRow
from boltzformer_monai.errors import ConfigError
from boltzformer_monai.transforms import PromptTokenizer, SelectPromptsd
from boltzformer_monai.transforms.prompts import masks_of
from tests.transforms.cases import make_row

LIVER, SPLEEN, KIDNEYS = make_row("liver", values=(1,)), make_row("spleen", values=(2,)), make_row("k", values=(3, 4))
ABSENT = [make_row(name, values=(9,), present=False) for name in ("stomach", "aorta")]


@pytest.fixture(scope="module")
def tokenizer() -> PromptTokenizer:
    return PromptTokenizer()


@pytest.fixture
def label_map() -> torch.Tensor:
    values = torch.zeros(1, 8, 8)
    values[0, :2, :4], values[0, 2:4, :4], values[0, 4:6, 4:], values[0, 6:, 4:] = 1, 2, 3, 4
    return values


def make(tokenizer: PromptTokenizer, **settings: Any) -> SelectPromptsd:
    defaults = {"prompts_per_image": 1, "mask_size": 8, "length": 12}
    return SelectPromptsd(tokenizer=tokenizer, **{**defaults, **settings}).set_random_state(0)


def sequence(transform: SelectPromptsd, rows: list[SliceRow], times: int = 20) -> list[str]:
    return [row.target for _ in range(times) for row in transform._choose(rows)]


def chosen(transform: SelectPromptsd, rows: list[SliceRow], times: int = 400) -> Counter[str]:
    return Counter(sequence(transform, rows, times))


def test_an_example_of_several_prompts(tokenizer: PromptTokenizer, label_map: torch.Tensor):
    rows = [LIVER, SPLEEN, KIDNEYS, *ABSENT]
    example = make(tokenizer, prompts_per_image=3)({"rows": rows, "image": torch.rand(1, 8, 8), "label_map": label_map})
    assert set(example) == {"image", "tokens", "label"}
    assert example["tokens"].shape == (3, 12)
    assert example["tokens"].dtype == torch.int64
    assert example["label"].shape == (3, 8, 8)
    # Each mask is that of the prompt beside it, and all three present targets were asked for once.
    encoded = {(*tokenizer.encode(p),): row for row in rows for p in row.prompts}
    asked = [encoded[tuple(i for i in ids if i >= 0)] for ids in example["tokens"].tolist()]
    assert {row.target for row in asked} == {"liver", "spleen", "k"}
    for row, mask in zip(asked, example["label"], strict=True):
        assert torch.equal(mask, torch.isin(label_map[0], torch.tensor(row.label_values).float()).float())


def test_composite_targets_join_their_values(label_map: torch.Tensor):
    masks = masks_of(label_map, [LIVER, KIDNEYS, ABSENT[0]], 8)
    assert masks.sum((1, 2)).tolist() == [8, 16, 0]


@pytest.mark.parametrize("size", [4, 2, 1])
def test_coarser_masks_keep_the_share_of_the_area(label_map: torch.Tensor, size: int):
    label_map[0, 7, 0] = 9  # one pixel alone
    rows = [LIVER, KIDNEYS, ABSENT[0]]
    full, coarse = masks_of(label_map, rows, 8), masks_of(label_map, rows, size)
    assert coarse.shape == (3, size, size)
    torch.testing.assert_close(coarse.mean((1, 2)), full.mean((1, 2)))
    assert float(coarse[2].max()) == (size / 8) ** 2


def test_the_same_seed_draws_the_same(tokenizer: PromptTokenizer):
    rows = [LIVER, SPLEEN, KIDNEYS, *ABSENT]
    first, again, other = (sequence(make(tokenizer, negatives=0.5).set_random_state(seed), rows) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_targets_are_not_asked_for_twice_while_there_are_others(tokenizer: PromptTokenizer):
    transform = make(tokenizer, prompts_per_image=3)
    for _ in range(50):
        assert len({row.target for row in transform._choose([LIVER, SPLEEN, KIDNEYS])}) == 3
    few = make(tokenizer, prompts_per_image=5)._choose([LIVER, SPLEEN])
    assert sorted(Counter(row.target for row in few).values()) == [2, 3]


@pytest.mark.parametrize(("negatives", "low", "high"), [(0.0, 0, 0), (0.3, 0.22, 0.38), (1.0, 1, 1)])
def test_negatives_have_their_share(tokenizer: PromptTokenizer, negatives: float, low: float, high: float):
    counts = chosen(make(tokenizer, negatives=negatives), [LIVER, SPLEEN, *ABSENT])
    share = (counts["stomach"] + counts["aorta"]) / counts.total()
    assert low <= share <= high


def test_without_a_share_all_targets_are_drawn_alike(tokenizer: PromptTokenizer):
    rows = [LIVER, *ABSENT, SPLEEN]
    counts = chosen(make(tokenizer, negatives=None), rows, 800)
    assert set(counts) == {"liver", "spleen", "stomach", "aorta"}
    assert min(counts.values()) > 150
    assert len(set(sequence(make(tokenizer, negatives=None, prompts_per_image=4), rows, 1))) == 4


def test_without_absent_targets_there_are_no_negatives_and_without_present_ones_only(tokenizer: PromptTokenizer):
    assert set(chosen(make(tokenizer, negatives=1.0), [LIVER, SPLEEN], 20)) == {"liver", "spleen"}
    assert set(chosen(make(tokenizer, negatives=0.0), ABSENT, 20)) == {"stomach", "aorta"}


def test_weights_draw_a_target_more_often(tokenizer: PromptTokenizer):
    counts = chosen(make(tokenizer, weights={"spleen": 3.0}), [LIVER, SPLEEN])
    assert 0.67 < counts["spleen"] / counts.total() < 0.83


def test_spellings_are_drawn_in_training_and_fixed_in_validation(tokenizer: PromptTokenizer, label_map: torch.Tensor):
    data = {"rows": [SPLEEN, LIVER, *ABSENT], "image": torch.rand(1, 8, 8), "label_map": label_map}
    training, fixed = make(tokenizer), make(tokenizer, random=False, prompts_per_image=5)
    assert len({tuple(training(data)["tokens"][0].tolist()) for _ in range(40)}) == 4
    first = fixed(data)
    expected = [tokenizer.encode(row.prompts[0]) for row in (SPLEEN, LIVER, *ABSENT, SPLEEN)]
    assert [tuple(i for i in ids if i >= 0) for ids in first["tokens"].tolist()] == expected
    assert torch.equal(fixed(data)["tokens"], first["tokens"])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"prompts_per_image": 0}, "prompts_per_image must be at least 1"),
        ({"negatives": 1.5}, "negatives in 0–1"),
        ({"weights": {"liver": 0.0}}, "the weight of target 'liver' must be positive"),
        ({"weights": {"liver": float("nan")}}, "must be positive"),
    ],
)
def test_impossible_settings(tokenizer: PromptTokenizer, settings: dict[str, Any], words: str):
    with pytest.raises(ConfigError, match=words):
        make(tokenizer, **settings)
