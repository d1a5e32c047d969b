"""The bundle in process: one training on a tiny data set, and what happens to misspelt keys."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser, create_workflow
from torch import Tensor

from boltzformer_monai import engines
from boltzformer_monai.engines import bundle
from boltzformer_monai.engines.layer_supervision import supervise_layers
from boltzformer_monai.engines.loss import BoltzFormerLoss
from boltzformer_monai.engines.settings import SETTINGS
from boltzformer_monai.errors import ConfigError, DatasetError, StorageError, user_error
from boltzformer_monai.networks.weights import load_checkpoint
from tests.engines.cases import write_dataset
from tests.networks.cases import SMALL

pytestmark = pytest.mark.usefixtures("bundle_in_process")

BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "boltzformer"


def parser(**overrides: Any) -> ConfigParser:
    config = ConfigParser()
    config.read_config(str(BUNDLE / "configs" / "train.json"))
    config.update({"bundle_root": str(BUNDLE), **{key.replace("#", "::"): value for key, value in overrides.items()}})
    return config


@pytest.mark.filterwarnings("ignore:parsing config_file")
def test_training_in_process(tmp_path: Path):
    overrides = {
        "bundle_root": str(BUNDLE),
        "dataset_dir": str(write_dataset(tmp_path / "slices")),
        "output_dir": str(tmp_path / "models"),
        "device": "$torch.device('cpu')",
        "preset": "tiny",
        "image_size": 64,
        "epochs": 3,
        "batch_size": 2,
        "network_overrides": {key: value for key, value in SMALL.items() if key != "image_size"},
        "train#trainer#max_epochs": 2,
    }
    workflow = create_workflow(
        "monai.bundle.ConfigWorkflow",
        config_file=str(BUNDLE / "configs" / "train.json"),
        workflow_type="train",
        logging_file=False,
        **overrides,
    )
    workflow.run()
    models = tmp_path / "models"
    network, description = load_checkpoint(models / "model.pt")
    assert description.network.dim == SMALL["dim"]
    assert [entry["target"] for entry in description.data["targets"]] == ["liver", "spleen", "viscera", "stomach"]
    history = json.loads((models / "history.json").read_text())
    assert [row["epoch"] for row in history] == [1.0, 2.0]
    assert "val_dice" in history[1]  # every second epoch is validated
    assert (models / "last.pt").is_file()
    assert list((models / "tensorboard").iterdir())
    last, _ = load_checkpoint(models / "last.pt")
    trained = workflow.parser.get_parsed_content("network")
    for name, weight in trained.state_dict().items():
        assert torch.equal(weight, last.state_dict()[name]), name
    # MONAI Label asks for the training a second time.
    before = (models / "last.pt").stat().st_mtime_ns
    workflow.run()
    assert (models / "last.pt").stat().st_mtime_ns == before
    workflow.finalize()


def start(config: ConfigParser) -> None:
    try:
        config.get_parsed_content("initialize::0")
    except RuntimeError as error:  # MONAI wraps what an expression raises
        raise user_error(error) or error from None


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("epoch", r"unknown override --epoch; did you mean --epochs\?"),
        ("batchsize", "did you mean --batch_size"),
        ("train#trainer#max_epoch", "--train#trainer#max_epoch; did you mean --train#trainer#max_epochs"),
        ("completely_else_where_zz", "see configs/train.json for the keys"),
    ],
)
def test_unknown_overrides_are_refused(key: str, words: str):
    with pytest.raises(ConfigError, match=words):
        start(parser(**{key: 1}))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("epochs", 2),
        ("train#trainer#max_epochs", 3),
        ("validate#dataloader#num_workers", 1),
        ("train#dataloader#pin_memory", True),  # an argument that the configuration does not give
        ("network", "$@network_def"),
    ],
)
def test_a_key_is_taken_as_it_is_written_and_refused_with_a_letter_more(key: str, value: Any):
    config = parser(**{key: value})
    start(config)
    assert config[key.replace("#", "::")] == value
    with pytest.raises(ConfigError, match=rf"unknown override --{key}x; "):
        start(parser(**{f"{key}x": value}))


def test_tracking_without_mlflow_is_refused_before_the_work(monkeypatch: pytest.MonkeyPatch):
    config = parser(**{"train#handlers": [{"_target_": "MLFlowHandler"}]})
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "mlflow" else found(name, *rest)
    )
    with pytest.raises(ConfigError, match=r"pip install 'boltzformer-monai\[tracking\]'"):
        start(config)


def test_free_keys_are_checked_where_they_are_used():
    for key, wrong, near in (
        ("network_overrides", {"querys": 3}, "queries"),
        ("settings_overrides", {"clop": 0.5}, "clip"),
    ):
        config = parser(**{key: wrong, "preset": "tiny", "_mine": 1})
        start(config)
        with pytest.raises(RuntimeError) as refused:
            config.get_parsed_content("network_config")
        assert f"did you mean {near!r}?" in str(user_error(refused.value))


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("network_overrides", {"presence": "false"}, r"--network_overrides#presence is the text 'false'; write False"),
        ("settings_overrides", {"cache": "true"}, r"--settings_overrides#cache is the text 'true'; write True"),
        ("settings_overrides", {"negatives": "null"}, "write None"),
        ("is_main", "false", "--is_main is the text 'false'"),
        ("train#dataloader#pin_memory", "false", "--train#dataloader#pin_memory is the text"),
        ("seed", float("nan"), "--seed must be a whole number"),
        ("folds", 3, "--folds needs --fold too"),
        ("fold", "0", "--fold must be a whole number"),
    ],
)
def test_words_of_json_are_no_values(key: str, value: Any, words: str):
    with pytest.raises(ConfigError, match=words):
        start(parser(**{key: value}))


def test_what_is_read_and_written_is_looked_at_before_anything_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def never(*arguments: Any, **settings: Any) -> None:
        pytest.fail("a network was made")

    monkeypatch.setattr(engines, "training_network", never)
    (tmp_path / "a file").write_bytes(b"")
    with pytest.raises(DatasetError, match="no such folder; make one with"):
        start(parser(dataset_dir=str(tmp_path / "nothing")))
    with pytest.raises(DatasetError, match=r"has no dataset\.json"):
        start(parser(dataset_dir=str(tmp_path)))
    with pytest.raises(StorageError, match="cannot write into .*a file"):
        start(parser(output_dir=str(tmp_path / "a file" / "models")))
    start(parser(dataset_dir=str(write_dataset(tmp_path / "slices")), output_dir=str(tmp_path / "models")))
    assert list((tmp_path / "models").iterdir()) == []


def test_a_bundle_that_is_not_there(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"no bundle at .*; run in the bundle's folder or give --bundle_root"):
        bundle.start(tmp_path, "train")


def test_start_belongs_to_monai_s_parser():
    with pytest.raises(ConfigError, match="must be run by MONAI's ConfigParser"):
        bundle.start(BUNDLE, "train")


def test_user_errors_are_one_line_and_others_keep_their_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    shown = []
    monkeypatch.setattr(sys, "excepthook", lambda *args: shown.append(args))
    bundle.one_line_errors()
    bundle.one_line_errors()
    try:
        try:
            raise DatasetError("there is no data set at X; make one")
        except DatasetError as error:
            raise RuntimeError("Failed to evaluate @reader") from error
    except RuntimeError as error:
        sys.excepthook(type(error), error, error.__traceback__)
    sys.excepthook(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert capsys.readouterr().err == "error: there is no data set at X; make one\n\ninterrupted\n"
    assert not shown
    bug = ZeroDivisionError("a bug")
    sys.excepthook(ZeroDivisionError, bug, None)
    assert shown == [(ZeroDivisionError, bug, None)]


def test_the_mask_keeps_its_proportion_to_the_image():
    assert bundle.mask_size_for(SETTINGS["hiera_s"], 512) == 256
    assert bundle.mask_size_for(SETTINGS["tiny"], 64) == 32


def test_the_network_to_train():
    small = {key: value for key, value in SMALL.items() if key != "image_size"}
    config = bundle.training_network_config("tiny", image_size=64, overrides=small)
    assert (config.image_size, config.dim) == (64, 16)
    with pytest.raises(ConfigError, match="give the image size as --image_size"):
        bundle.training_network_config("tiny", image_size=96, overrides=SMALL)
    network = engines.training_network(config, replace(SETTINGS["tiny"], precision="bf16"), device=torch.device("cpu"))
    assert network.precision == "bf16"
    assert network.training
    with pytest.raises(ConfigError, match="did you mean 'queries'"):
        bundle.training_network_config("tiny", image_size=64, overrides={"querys": 1})


def of_one_epoch(folder: Path, **overrides: Any) -> dict[str, Any]:
    return {
        "dataset_dir": str(write_dataset(folder / "slices")),
        "output_dir": str(folder / "models"),
        "device": "cpu",
        "preset": "tiny",
        "image_size": 64,
        "epochs": 1,
        "batch_size": 2,
        "network_overrides": {key: value for key, value in SMALL.items() if key != "image_size"},
        **overrides,
    }


def test_every_layer_is_supervised_where_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen: list[Tensor | None] = []
    layers = BoltzFormerLoss.layers

    def watched(loss: BoltzFormerLoss, prediction: Any, target: Tensor) -> Any:
        seen.append(None if isinstance(prediction, Tensor) else prediction.layers)
        return layers(loss, prediction, target)

    monkeypatch.setattr(BoltzFormerLoss, "layers", watched)
    settings = {"layer_supervision": 0.5, "layer_supervision_stride": 2}
    bundle.run_workflow("train", of_one_epoch(tmp_path, settings_overrides=settings), root=BUNDLE)
    in_training = [each for each in seen if each is not None]
    assert {tuple(each.shape) for each in in_training} == {(2, 4, 9, 8, 8)}  # three layers' queries, at half of S
    assert len(in_training) < len(seen)  # the validation is without
    network, _ = load_checkpoint(tmp_path / "models" / "model.pt")
    assert network.decoder.layer_logits is False


def test_a_decoder_without_layers_is_not_supervised(tmp_path: Path):
    config = bundle.training_network_config("tiny", image_size=64, overrides={"dim": 16, "heads": 2, "hidden": 24})
    network = engines.training_network(config, SETTINGS["tiny"], device=torch.device("cpu"))
    plain = replace(SETTINGS["tiny"], layer_supervision=0.0)
    supervised = replace(SETTINGS["tiny"], layer_supervision=0.3, layer_supervision_stride=1)
    assert supervise_layers(network, supervised)
    assert network.decoder.layer_logits
    assert not supervise_layers(network, plain)
    assert not network.decoder.layer_logits
    assert supervise_layers(network, SETTINGS["tiny"])
    assert (network.decoder.layer_logits, network.decoder.layer_stride) == (True, 2)
    network.decoder = torch.nn.Identity()
    supervise_layers(network, plain)
    assert not supervise_layers(network, SETTINGS["tiny"])  # the preset's own weight: nobody asked for it
    with pytest.raises(ConfigError, match="the decoder Identity has no layer_logits, so its layers cannot be"):
        supervise_layers(network, supervised)
    network.decoder.layer_logits = False
    assert supervise_layers(network, supervised)
    with pytest.raises(ConfigError, match="has no layer_stride"):
        supervise_layers(network, replace(supervised, layer_supervision_stride=4))


def test_a_preset_trains_decoders_without_layers_too(caplog: pytest.LogCaptureFixture):
    config = bundle.training_network_config("tiny", image_size=64, overrides={"decoder": "sam"})
    with caplog.at_level("INFO"):
        engines.training_network(config, SETTINGS["tiny"], device=torch.device("cpu"))
    assert "the decoder sam gives no masks between its layers: layer_supervision is off" in caplog.text


@pytest.mark.filterwarnings("ignore:parsing config_file")
def test_the_loss_can_be_replaced(tmp_path: Path):
    loss = {"loss#_target_": "monai.losses.TverskyLoss", "loss#sigmoid": True, "loss#alpha": 0.3}
    bundle.run_workflow("train", of_one_epoch(tmp_path, **loss), root=BUNDLE)
    (epoch,) = json.loads((tmp_path / "models" / "history.json").read_text())
    assert 0 < epoch["val_loss"] < 1.01
    assert epoch["images_per_second"] > 0
    assert 0 <= epoch["data_wait"] <= 1
    assert epoch["peak_memory_gb"] > 0.1


@pytest.mark.parametrize(
    ("overrides", "what"),
    [
        ({"loss#_target_": "monai.losses.NoLoss"}, r"--loss#_target_ monai.losses.NoLoss: there is no such class"),
        ({"loss#_target_": "no_module.Loss"}, r"--loss#_target_ no_module.Loss: there is no such class"),
        ({"loss#_target_": "monai.losses.DiceLoss", "loss#sigmiod": True}, "unknown override --loss#sigmiod"),
        ({"loss#_target_": "monai.losses.DeepSupervisionLoss"}, "missing a required argument: 'loss'"),
        ({"global_batch": 0}, "--global_batch must be a whole number"),
    ],
)
def test_components_that_cannot_be_replaced_so(overrides: dict[str, Any], what: str):
    with pytest.raises(RuntimeError) as raised:
        parser(**overrides).get_parsed_content("initialize")
    refused = user_error(raised.value)
    assert refused is not None
    assert what in str(refused)
    assert "\n" not in str(refused)
