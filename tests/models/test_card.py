"""The card, the bundle's metadata and info show the numbers of metrics.json."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from boltzformer_monai.bundle_files import bundle_root
from boltzformer_monai.errors import ConfigError, DatasetError
from boltzformer_monai.evaluation.tables import format_estimate
from boltzformer_monai.models.card import add_metrics, eval_metrics, read_metrics, write_bundle_metrics
from boltzformer_monai.models.config import read_config
from boltzformer_monai.models.convert import convert
from boltzformer_monai.models.folder import load_model
from boltzformer_monai.models.info import info_text, model_info
from tests.models.conftest import RESTRICTED, write_metrics, write_model


@pytest.fixture
def folder(checkpoint: Path, tmp_path: Path) -> Path:
    convert(checkpoint, tmp_path / "mine")
    return tmp_path / "mine"


def test_card_metadata_and_info_show_the_numbers_of_an_evaluation(folder: Path, tmp_path: Path) -> None:
    assert "Not evaluated yet" in (folder / "README.md").read_text(encoding="utf-8")
    assert model_info(folder)["metrics"] is None
    before = read_config(folder).sha256
    content = write_metrics(tmp_path / "metrics.json", before)
    kept = add_metrics(folder, tmp_path / "metrics.json")
    assert load_model(folder).sha256 == before  # it is the same model

    card = ModelCard.load(folder / "README.md")
    text = card.content
    overall, small = content["slices"]["overall"], content["slices"]["strata"]["below_1_percent"]
    for estimate in (overall["dice"], small["dice"], content["volumes"]["overall"]["dice"]):
        assert estimate["low"] < estimate["high"]
        assert format_estimate(estimate, "") in text
    assert "below 1 % of the image" in text
    results = {each.metric_name: each.metric_value for each in card.data.eval_results}
    assert results["Dice (slices)"] == overall["dice"]["mean"]
    assert results["Dice (volumes)"] == content["volumes"]["overall"]["dice"]["mean"]

    shutil.copytree(bundle_root(), tmp_path / "bundle")
    path = write_bundle_metrics(kept, tmp_path / "bundle")
    metadata = json.loads(path.read_text(encoding="utf-8"))
    assert metadata["eval_metrics"] == eval_metrics(content)
    assert metadata["eval_metrics"]["dice_slices"] == overall["dice"]["mean"]
    assert metadata["eval_metrics"]["dice_slices_low"] == overall["dice"]["low"]
    assert metadata["eval_metrics"]["dice_slices_below_1_percent"] == small["dice"]["mean"]
    original = json.loads((bundle_root() / "configs" / "metadata.json").read_text(encoding="utf-8"))
    assert {**metadata, "eval_metrics": {}} == original

    info = model_info(folder)
    assert info["metrics"]["slices"] == content["slices"]
    assert format_estimate(overall["dice"], "") in info_text(info)
    # Single cases name volumes and patients, and stay where they were measured.
    assert "cases" in content["volumes"]
    assert "cases" not in json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["volumes"]


def test_metrics_of_the_checkpoint_are_those_of_its_folder(checkpoint: Path, folder: Path, tmp_path: Path) -> None:
    write_metrics(tmp_path / "metrics.json", load_model(checkpoint).sha256)
    add_metrics(folder, tmp_path / "metrics.json")


@pytest.mark.parametrize(
    ("sha256", "words"), [("0" * 64, "is of the model 0000000000000000…"), (None, "does not say of which model it is")]
)
def test_metrics_of_another_model_are_refused(folder: Path, tmp_path: Path, sha256: str | None, words: str) -> None:
    write_metrics(tmp_path / "metrics.json", sha256)
    with pytest.raises(DatasetError, match=words):
        add_metrics(folder, tmp_path / "metrics.json")
    assert not (folder / "metrics.json").exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"slices": {}}', '{"slices": [1]}'])
def test_what_is_no_metrics_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "metrics.json").write_text(text)
    with pytest.raises(DatasetError, match=r"metrics.json: (cannot be read|holds no metrics)") as caught:
        read_metrics(tmp_path / "metrics.json")
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"metadata.json: cannot be read .* give the folder of a bundle"):
        write_bundle_metrics({}, tmp_path)


def test_the_card_says_what_a_model_is(folder: Path, tmp_path: Path) -> None:
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "boltzformer-monai"
    assert card.data.license is None
    assert {"ct", "mr", "medical"} <= set(card.data.tags)
    assert card.data.base_model == ["facebook/sam2-hiera-small"]
    for words in (
        "# mine",
        "Not a medical device",
        "| lung nodule | CT | chest | level -160, width 1500 HU |",
        "| liver \\| lesion | MR | abdomen | percentiles 1 to 99 |",
        "Plane: coronal.",
        "- train: 3 volumes, 2 patients, 17 slices",
        "- pixel spacing: 0.5 to 1 mm, median 0.75",
        f"- sha256 of its records: {'5' * 64}",
        f"- backbone: facebook/sam2-hiera-small, sha256 {'9' * 64}, licence Apache-2.0",
        "Not stated; ask whoever trained the model.",
        read_config(folder).weights_sha256,
    ):
        assert words in card.content, words
    write_model(tmp_path / "model.pt", licence=RESTRICTED.as_dict(), targets=[])
    convert(tmp_path / "model.pt", tmp_path / "other")
    other = ModelCard.load(tmp_path / "other" / "README.md")
    assert other.data.license == "cc-by-nc-sa-4.0"
    assert "CC-BY-NC-SA-4.0, research only, https://example.org/licence." in other.content
    assert "The model states no vocabulary" in other.content
