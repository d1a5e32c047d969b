from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from boltzformer_monai.data.slices.reader import SliceReader
from boltzformer_monai.data.slices.writer import SliceWriter
from boltzformer_monai.engines.data import (
    AllPromptsd,
    collate_slices,
    describe_data,
    group_by_slice,
    open_dataset,
    prompt_length,
    training_items,
    training_transform,
    validation_items,
)
from boltzformer_monai.engines.settings import SETTINGS
from boltzformer_monai.errors import ConfigError, DatasetError
from boltzformer_monai.transforms import PromptTokenizer
from tests.data.slice_cases import add
from tests.engines.cases import write_dataset


@pytest.fixture(scope="module")
def tokenizer() -> PromptTokenizer:
    return PromptTokenizer()


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> SliceReader:
    return SliceReader(write_dataset(tmp_path_factory.mktemp("slices")))


def test_one_prompt_per_image_is_an_item_per_present_target(reader: SliceReader):
    items = training_items(reader, split="train", prompts_per_image=1)
    # Two patients, two slices: liver and viscera in both, spleen in the first.
    assert len(items) == 2 * (2 + 1 + 2)
    for item in items:
        first, *others = item["rows"]
        assert first.present
        assert not any(row.present for row in others)
        assert {row.image for row in others} == {first.image}
        assert "stomach" in {row.target for row in others}


def test_several_prompts_per_image_are_an_item_per_slice(reader: SliceReader):
    items = training_items(reader, split="train", prompts_per_image=4)
    assert [len(item["rows"]) for item in items] == [4, 4, 4, 4]
    assert {row.split for item in items for row in item["rows"]} == {"train"}
    assert len(training_items(reader, split="val", prompts_per_image=4)) == 2


def test_a_split_without_labels(reader: SliceReader, tmp_path: Path):
    with pytest.raises(DatasetError, match="no labelled slices in the split 'test'"):
        training_items(reader, split="test", prompts_per_image=1)
    bare = SliceReader(write_dataset(tmp_path / "bare", labelled=False))
    for prompts_per_image in (1, 4):
        with pytest.raises(DatasetError, match="slice volumes with --label"):
            training_items(bare, split="train", prompts_per_image=prompts_per_image)


@pytest.mark.parametrize("augment", [True, False])
def test_examples_fit_the_network(reader: SliceReader, tokenizer: PromptTokenizer, augment: bool):
    settings = replace(SETTINGS["tiny"], image_size=64, mask_size=32, prompts_per_image=3)
    length = prompt_length(reader, tokenizer)
    transform = training_transform(settings, tokenizer=tokenizer, length=length, augment=augment, seed=1)
    item = training_items(reader, split="train", prompts_per_image=3)[0]
    example = transform(item)
    assert example["image"].shape == (1, 64, 64)
    assert example["tokens"].shape == (3, length)
    assert example["label"].shape == (3, 32, 32)
    assert 0 <= float(example["label"].min()) <= float(example["label"].max()) == 1
    again = transform(item)
    same = torch.equal(example["image"], again["image"]) and torch.equal(example["tokens"], again["tokens"])
    assert same == (not augment)
    repeated = training_transform(settings, tokenizer=tokenizer, length=length, augment=augment, seed=1)(item)
    assert torch.equal(repeated["image"], example["image"])
    assert torch.equal(repeated["tokens"], example["tokens"])


def test_the_masks_lie_on_the_image(reader: SliceReader, tokenizer: PromptTokenizer):
    settings = replace(SETTINGS["tiny"], image_size=64, mask_size=64, prompts_per_image=2)
    transform = training_transform(settings, tokenizer=tokenizer, length=20, augment=False)
    example = transform(training_items(reader, split="train", prompts_per_image=2)[0])
    inside = example["image"][0][example["label"][0] > 0].mean()
    outside = example["image"][0][example["label"].sum(0) == 0].mean()
    assert inside > outside + 0.1  # the phantom's organs are brighter by 100 HU


def test_slices_of_different_numbers_of_prompts_in_one_batch(reader: SliceReader, tokenizer: PromptTokenizer):
    rows = group_by_slice(reader.select(split="train"))
    transform = AllPromptsd(tokenizer=tokenizer, length=15)
    items = [transform({"image": torch.rand(1, 8, 8), "rows": rows[0]["rows"][:count]}) for count in (3, 1)]
    batch = collate_slices(items)
    assert batch["tokens"].shape == (2, 3, 15)
    assert batch["image"].shape == (2, 1, 8, 8)
    assert [len(r) for r in batch["rows"]] == [3, 1]
    assert (batch["tokens"][1, 1:] == -1).all()
    assert torch.equal(batch["tokens"][1, 0], batch["tokens"][0, 0])
    assert batch["tokens"][0, 0, 0] == 49406


def test_all_prompts_fit_into_the_length(reader: SliceReader, tokenizer: PromptTokenizer):
    length = prompt_length(reader, tokenizer)
    lengths = {len(tokenizer.encode(prompt)) for row in reader.rows for prompt in row.prompts}
    assert length == max(lengths)


def test_what_inference_must_know(reader: SliceReader):
    described = describe_data(reader)
    assert described["plane"] == "axial"
    # Three volumes of one kind: every combination of target, site and window is named once.
    assert [entry["target"] for entry in described["targets"]] == ["liver", "spleen", "viscera", "stomach"]
    for entry in described["targets"]:
        assert (entry["modality"], entry["site"]) == ("CT", "abdomen")
        assert entry["window"] == reader.rows[0].window.to_dict()


def test_a_split_that_changed_since_the_training_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    own, other = (write_dataset(tmp_path / str(val), val=val) for val in (0, 1))
    model = describe_data(SliceReader(own))
    for root, said in ((own, False), (other, True)):
        caplog.clear()
        open_dataset(root, demo_dir=tmp_path, model=model)
        assert ("split otherwise than in the model's training" in caplog.text) is said


def test_a_model_remembers_the_planes_that_its_scans_were_sliced_along(tmp_path: Path):
    for number, planes in enumerate((("axial", "coronal"), ("axial", "coronal", "sagittal"))):
        for plane in planes:
            add(SliceWriter(tmp_path), f"case{number}-{plane}", patient=f"p{number}", scan=f"case{number}", plane=plane)
    described = describe_data(open_dataset(tmp_path, demo_dir=tmp_path))
    assert (described["plane"], described["planes"]) == ("axial", ["axial", "coronal", "sagittal"])
    assert len(described["targets"]) == 4  # not once for every plane
    one = describe_data(open_dataset(tmp_path, demo_dir=tmp_path, planes="coronal"))
    assert (one["plane"], "planes" in one) == ("coronal", False)
    with pytest.raises(ConfigError, match="planes must be different ones of"):
        open_dataset(tmp_path, demo_dir=tmp_path, planes=["axial", "axial"])


def test_a_data_set_that_is_not_there(tmp_path: Path):
    with pytest.raises(DatasetError, match="no such folder"):
        open_dataset(tmp_path / "nowhere", demo_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_given_data_set_is_opened(reader: SliceReader, tmp_path: Path):
    assert open_dataset(str(reader.root), demo_dir=tmp_path).name == "unit"


def test_validation_asks_for_every_present_target_once(tmp_path: Path):
    reader = SliceReader(write_dataset(tmp_path))
    present = {(row.image, row.target) for row in reader.select(split="val", present=True)}
    for prompts in (1, 2, 3, 10):
        items = validation_items(reader, split="val", prompts_per_image=prompts, negatives=0.1)
        asked = [(row.image, row.target) for item in items for row in item["rows"] if row.present]
        assert sorted(asked) == sorted(present)
        assert all(1 <= len(item["rows"]) <= prompts for item in items)


def test_without_negatives_no_absent_target_is_asked(tmp_path: Path):
    reader = SliceReader(write_dataset(tmp_path))
    items = validation_items(reader, split="val", prompts_per_image=4, negatives=0.0)
    assert all(row.present for item in items for row in item["rows"])
    trained = training_items(reader, split="train", prompts_per_image=4, negatives=0.0)
    assert all(any(row.present for row in item["rows"]) for item in trained)
    assert len(trained) <= len(training_items(reader, split="train", prompts_per_image=4, negatives=None))
