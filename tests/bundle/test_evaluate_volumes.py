"""`evaluate.json` on whole volumes, with a network that has a presence head."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import create_workflow

from boltzformer_monai.data.slices.reader import SliceReader
from boltzformer_monai.data.slices.writer import SliceWriter
from boltzformer_monai.engines.data import describe_data
from boltzformer_monai.errors import ConfigError, user_error
from boltzformer_monai.evaluation.detection import read_objects_csv
from boltzformer_monai.evaluation.pooling import pool_evaluations
from boltzformer_monai.inferers.run_settings import RunSettings
from boltzformer_monai.inferers.segmenter import VolumeSegmenter
from boltzformer_monai.networks.presets import network_config
from boltzformer_monai.networks.weights import Description
from tests.data.slice_cases import add, make_volume
from tests.engines.cases import write_dataset
from tests.networks.cases import SMALL, small_network

BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "boltzformer"


@pytest.fixture(scope="module")
def slices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("slices"))


def _checkpoint(path: Path, presence: dict[str, float] | None, *, head: bool = True) -> Path:
    network = small_network(presence=head)
    data: dict[str, Any] = {"plane": "axial", "targets": []}
    if presence is not None:
        data["presence"] = presence
    description = Description(network_config("tiny", **{**SMALL, "presence": head}), data)
    torch.save({"model": network.state_dict(), "description": description.state_dict()}, path)
    return path


def _volumes(slices: Path, checkpoint: Path, output: Path, **overrides: Any) -> dict[str, Any]:
    settings = {"dataset_dir": str(slices), "checkpoint": str(checkpoint), "output_dir": str(output), "device": "cpu"}
    workflow = create_workflow(
        workflow_type="infer",
        config_file=str(BUNDLE / "configs" / "evaluate.json"),
        logging_file=False,
        bundle_root=str(BUNDLE),
        threshold=0.01,  # the network knows nothing: let it answer
        **settings,
        **overrides,
    )
    assert workflow.check_properties() == []
    workflow.run()
    workflow.finalize()
    return json.loads((output / "metrics.json").read_text())["volumes"]


def test_the_presence_rule_of_the_checkpoint_is_applied_unless_switched_off(slices: Path, tmp_path: Path) -> None:
    never = {"high": 1 - 1e-9, "low": 1 - 1e-9}
    checkpoint = _checkpoint(tmp_path / "model.pt", never)
    on = _volumes(slices, checkpoint, tmp_path / "on")
    off = _volumes(slices, checkpoint, tmp_path / "off", presence=False)
    assert (on["presence"], off["presence"]) == (never, None)
    assert len(on["cases"]) == len(off["cases"]) == 4
    assert all(case["predicted_ml"] == 0 for case in on["cases"])
    assert any(case["predicted_ml"] > 0 for case in off["cases"])
    assert all(0 < case["presence"] < 1 for case in [*on["cases"], *off["cases"]])
    assert [case["presence"] for case in on["cases"]] == [case["presence"] for case in off["cases"]]


def test_objects_and_calibration_are_written_and_pooled_to_the_same(slices: Path, tmp_path: Path) -> None:
    volumes = _volumes(slices, _checkpoint(tmp_path / "model.pt", None), tmp_path / "eval")
    metrics = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    objects = read_objects_csv(tmp_path / "eval" / "objects.csv")
    for part, summary in (("slices", metrics["slices"]), ("volumes", volumes)):
        found = [each for each in objects if each.part == part]
        counts = summary["overall"]
        assert sum(each.kind == "truth" for each in found) == counts["recall_iou0"]["total"] > 0
        assert sum(each.kind == "mask" for each in found) == counts["precision_iou0"]["total"] > 0
        assert sum(each.kind == "truth" and each.iou10 for each in found) == pytest.approx(
            counts["recall_iou10"]["mean"] * counts["recall_iou10"]["total"]
        )
        assert summary["froc"]["overall"]["iou0"]["objects"] == counts["recall_iou0"]["total"]
        assert {each.confidence is None for each in found if each.kind == "mask"} == {False}
        assert summary["calibration"]["presence"]["overall"]["ece"]["total"] == counts["present"] + counts["absent"]
    assert metrics["slices"]["calibration"]["pixels"]["overall"]["ece"]["total"] > 1000
    pooled, _ = pool_evaluations([tmp_path / "eval"])
    for part in ("slices", "volumes"):
        for name in ("strata", "found_by_size", "froc"):
            assert pooled[part][name] == metrics[part][name]
    assert "FROC" in (tmp_path / "eval" / "report.html").read_text()


def test_a_network_without_head_is_evaluated_as_it_is(slices: Path, tmp_path: Path) -> None:
    volumes = _volumes(slices, _checkpoint(tmp_path / "model.pt", None, head=False), tmp_path, resamples=10, seed=4)
    assert volumes["presence"] is None
    assert {case["presence"] for case in volumes["cases"]} == {None}
    assert volumes["bootstrap"] == {"resamples": 10, "seed": 4, "level": 0.95}
    assert volumes["tolerance_mm"] == 2.0


def test_the_batch_does_not_matter(slices: Path, tmp_path: Path) -> None:
    checkpoint = _checkpoint(tmp_path / "model.pt", {"high": 0.6, "low": 0.3})
    one, many = (_volumes(slices, checkpoint, tmp_path / str(size), batch_size=size) for size in (1, 2))
    for a, b in zip(one["cases"], many["cases"], strict=True):
        for name in [name for name, value in a.items() if isinstance(value, list)]:  # [found, all]
            assert a.pop(name) == pytest.approx(b.pop(name), abs=1e-5)
        assert a == pytest.approx(b, abs=1e-5)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [({"tolerance_mm": -1}, "tolerance"), ({"resamples": 0}, "resamples"), ({"presence": "maybe"}, "--presence")],
)
def test_mistakes_are_named(slices: Path, tmp_path: Path, overrides: dict[str, Any], said: str) -> None:
    with pytest.raises(RuntimeError) as caught:
        _volumes(slices, _checkpoint(tmp_path / "model.pt", None), tmp_path, **overrides)
    error = user_error(caught.value)
    assert isinstance(error, ConfigError)
    assert said in str(error)
    assert "\n" not in str(error)


def test_the_mean_of_the_planes_is_what_a_segmentation_finds(tmp_path: Path) -> None:
    image, label = make_volume()
    planes = ("axial", "coronal", "sagittal")
    for plane in planes:
        writer = SliceWriter(tmp_path / "slices", name="unit")
        add(writer, f"scan-{plane}", patient="scan", scan="scan", plane=plane, split="val", labels={1: "liver"})
    reader = SliceReader(tmp_path / "slices")
    network = small_network(presence=True)
    description = Description(network_config("tiny", **{**SMALL, "presence": True}), describe_data(reader))
    assert description.data["planes"] == list(planes)
    checkpoint = tmp_path / "model.pt"
    torch.save({"model": network.state_dict(), "description": description.state_dict()}, checkpoint)
    segmenter = VolumeSegmenter.from_checkpoint(checkpoint, precision="fp32")
    for chosen, tta in ((None, 1), (["coronal"], 1), (["axial"], 3)):
        evaluated = _volumes(reader.root, checkpoint, tmp_path / "out", precision="fp32", planes=chosen, tta=tta)
        (case,) = evaluated["cases"]
        settings = RunSettings(prompts=["liver in abdominal CT"], threshold=0.01, planes=chosen, tta=tta)
        with segmenter.inferer(settings).segment(image, segmenter.network) as result:
            found = result.findings[0]
            assert result.planes == tuple(chosen or planes)
        assert case["predicted_ml"] > 0
        assert (case["volume"], case["prompt"]) == ("scan", result.prompts[0])
        assert case["predicted_ml"] == pytest.approx(found.volume_ml, rel=0.01 * tta)
        assert case["presence"] == pytest.approx(found.presence, abs=1e-4)
        assert case["truth_ml"] == pytest.approx((label.array == 1).sum() * image.spacing[0] * 0.9 * 5 / 1000)
