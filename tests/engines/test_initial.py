"""What a training starts from: files, the table of parts, frozen parts, own learning rates, provenance."""

from __future__ import annotations

import copy
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from boltzformer_monai.data.slices.writer import SliceWriter
from boltzformer_monai.engines import SETTINGS, find_initial_weights, make_optimizer, training_network
from boltzformer_monai.engines.bundle import run_workflow
from boltzformer_monai.errors import BoltzFormerError, CheckpointError, ConfigError, user_error
from boltzformer_monai.io.read import read_label_map, read_volume
from boltzformer_monai.io.volume import Volume
from boltzformer_monai.models.folder import load_model, save_model
from boltzformer_monai.models.info import info_text, model_info
from boltzformer_monai.models.licence import Licence
from boltzformer_monai.networks import BoltzFormer, network_config
from boltzformer_monai.networks.published import SOURCES
from boltzformer_monai.networks.weights import load_checkpoint
from boltzformer_monai.storage import file_sha256
from tests.engines.cases import write_dataset
from tests.networks.cases import SMALL, small_network
from tests.networks.published.test_initial import saved
from tests.networks.published.test_sam2 import sam2_state

pytestmark = pytest.mark.usefixtures("bundle_in_process")

BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "boltzformer"
CPU = torch.device("cpu")
NARROW = {key: value for key, value in SMALL.items() if key != "image_size"}
CONFIG = network_config("tiny", **SMALL)
TINY = SETTINGS["tiny"]
RESTRICTED = Licence(name="CC-BY-NC-4.0", restricted=True, terms="no commercial use")


def network_from(init_from: dict[str, Any], settings: Any = TINY, config: Any = CONFIG, seed: int = 5) -> BoltzFormer:
    torch.manual_seed(seed)
    return training_network(config, settings, device=CPU, initial=find_initial_weights(init_from, config=config))


def differing(one: BoltzFormer, other: BoltzFormer) -> set[str]:
    theirs = other.state_dict()
    return {name for name, weight in one.state_dict().items() if not torch.equal(weight, theirs[name])}


def train(tmp_path: Path, slices: Path, name: str, **overrides: Any) -> Path:
    settings = {"preset": "tiny", "image_size": 64, "batch_size": 4, "device": "cpu", "network_overrides": NARROW}
    places = {"dataset_dir": str(slices), "output_dir": str(tmp_path / name)}
    try:
        run_workflow("train", {**settings, **places, **overrides}, root=BUNDLE)
    except RuntimeError as error:  # MONAI wraps what an expression raises
        raise user_error(error) or error from None
    return tmp_path / name


@pytest.mark.slow
def test_hiera_s_differs_from_random_in_its_backbone_only(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """The real backbone and decoder; the text encoder has one layer and 128 pixels are enough to build it."""
    config = network_config("hiera_s", image_size=128, text_layers=1)
    settings = SETTINGS["hiera_s"]
    with caplog.at_level(logging.INFO):
        random = network_from({}, settings, config)
    assert "backbone and text encoder start at random" in caplog.text
    assert "hiera_s starts from SAM 2's Hiera-S (boltzformer weights fetch sam2_hiera_small)" in caplog.text
    assert "the training starts from" not in caplog.text
    caplog.clear()
    source = training_network(config, settings, device=CPU)
    torch.save({"model": sam2_state(source)}, tmp_path / "sam2.pt")
    with caplog.at_level(logging.INFO):
        network = network_from({"backbone": tmp_path / "sam2.pt"}, replace(settings, freeze=["backbone"]), config)
    changed = differing(network, random)
    assert {name.partition(".")[0] for name in changed} == {"backbone"}
    assert not {name for name in differing(network, source) if name.startswith("backbone.")}
    count = str(len(list(network.backbone.parameters())))
    table = caplog.text.partition("the training starts from:\n")[2].splitlines()
    assert table[0].split() == ["part", "tensors", "from", "at", "random", "frozen"]
    assert table[1].split() == ["backbone", count, "sam2.pt", *["(SAM", "2", "(facebookresearch/sam2))", "–"], count]
    of_text = str(len(list(network.text_encoder.parameters())))
    assert table[3].split() == ["text_encoder", of_text, "random", "weights", of_text, "–"]
    assert "\ntext encoder starts at random" not in caplog.text
    assert "text encoder starts at random" in caplog.text


@pytest.mark.parametrize(
    ("init_from", "kind", "words"),
    [
        ({"backbon": "model.pt"}, ConfigError, "unknown part to start from .*'backbon'; did you mean 'backbone'"),
        ("model.pt", ConfigError, "init_from must be a mapping like"),
        ({"backbone": 3}, ConfigError, "init_from must be a mapping like"),
        ({"backbone": "modle.pt"}, CheckpointError, "no weights at .*modle.pt; did you mean 'model.pt'"),
        ({"backbone": "sam2_hiera_smal"}, CheckpointError, "did you mean 'sam2_hiera_small'"),
        ({"text_encoder": "notes.pt"}, CheckpointError, "notes.pt holds weights of no known source"),
        ({"model": "other.pt"}, CheckpointError, "other.pt does not fit this network: weights 3 of another shape"),
    ],
)
def test_what_cannot_be_used_is_refused_before_slices_are_read(
    tmp_path: Path, init_from: Any, kind: type[BoltzFormerError], words: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "model.pt", small_network(1))
    saved(tmp_path / "other.pt", small_network(1, queries=4))
    torch.save({"a": torch.zeros(2)}, tmp_path / "notes.pt")
    slices = write_dataset(tmp_path / "slices")
    monkeypatch.setattr("boltzformer_monai.engines.open_dataset", lambda *_, **__: pytest.fail("slices were read"))
    with pytest.raises(kind, match=words) as raised:
        train(tmp_path, slices, "run", init_from=init_from)
    assert "\n" not in str(raised.value)


def test_a_part_that_the_network_brings_itself_is_not_given_twice(tmp_path: Path):
    saved(tmp_path / "model.pt", small_network(1))
    with pytest.raises(ConfigError, match=r"both init_from and network_overrides \{'pretrained'"):
        find_initial_weights({"model": tmp_path / "model.pt"}, config=replace(CONFIG, pretrained=True))
    brought = find_initial_weights({}, config=replace(CONFIG, pretrained=True)).data["initial_weights"]
    assert brought == [{"part": "backbone", "source": "timm", "file": "tiny"}]


def test_a_model_folder_that_was_changed_is_refused(tmp_path: Path):
    content = torch.load(saved(tmp_path / "model.pt", small_network(1)), weights_only=True)
    save_model(content, tmp_path / "run" / "model")
    for place in (tmp_path / "run", tmp_path / "run" / "model", tmp_path / "run" / "model" / "model.safetensors"):
        assert not differing(network_from({"model": place}), small_network(1))
    with (tmp_path / "run" / "model" / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    with pytest.raises(CheckpointError, match="is not the file that config.json describes"):
        find_initial_weights({"model": tmp_path / "run"}, config=CONFIG)


def test_a_fetched_file_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []

    def cached(repo: str, file: str) -> str | None:
        asked.append((repo, file))
        return str(path) if path.exists() else None

    path = tmp_path / "sam2_hiera_small.pt"
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", cached)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="was not fetched; boltzformer weights fetch sam2_hiera_small"):
        find_initial_weights({"backbone": "sam2_hiera_small"}, config=CONFIG)
    saved(path, small_network(1))
    with pytest.raises(CheckpointError, match="is not what the catalogue says"):
        find_initial_weights({"backbone": "sam2_hiera_small"}, config=CONFIG)
    stated = (file_sha256(path), "catalogue")
    monkeypatch.setattr("boltzformer_monai.models.initial.stated_sha256", lambda *_: stated)
    assert find_initial_weights({"backbone": "sam2_hiera_small"}, config=CONFIG).places == {"backbone": path}
    assert set(asked) == {("facebook/sam2-hiera-small", "sam2_hiera_small.pt")}


def test_frozen_parts_stay_as_they_are(tmp_path: Path):
    """Also the statistics of their norms; the checkpoint is whole, and says where its weights are from."""
    source = small_network(1)
    path = saved(tmp_path / "initial.pt", source)
    parts = ["backbone", "text_encoder"]
    run = train(
        tmp_path,
        write_dataset(tmp_path / "slices"),
        "run",
        epochs=1,
        init_from=dict.fromkeys(parts, str(path)),
        freeze=parts,
    )
    network, description = load_checkpoint(run / "last.pt")
    changed = {name.partition(".")[0] for name in differing(network, source)}
    assert changed == {"pixel_decoder", "decoder"}
    assert network.frozen == ()
    assert all(parameter.requires_grad for parameter in network.parameters())
    first, second = description.data["initial_weights"]
    assert (first["part"], second["part"]) == ("backbone", "text_encoder")
    assert first["file"] == "initial.pt"
    assert first["source"] == "a checkpoint of this package"
    assert first["sha256"] == file_sha256(path)
    assert load_model(run / "model").description.data["initial_weights"] == [first, second]
    assert f"- backbone: a checkpoint of this package, file initial.pt, sha256 {first['sha256']}" in (
        run / "model" / "README.md"
    ).read_text(encoding="utf-8")
    assert "text_encoder: a checkpoint of this package" in info_text(model_info(run / "model"))


def test_evaluation_mode_of_frozen_parts_outlasts_train(tmp_path: Path):
    path = saved(tmp_path / "model.pt", small_network(1))
    network = network_from({"model": path}, replace(TINY, freeze=["backbone"]))
    network.eval().train()
    assert not any(module.training for module in network.backbone.modules())
    assert all(module.training for module in network.decoder.modules())
    assert copy.deepcopy(network).train().backbone.training is False


def test_what_a_file_lacks_is_trained_in_a_frozen_part_too(tmp_path: Path):
    config = network_config("tiny", **{**SMALL, "presence": True})
    path = saved(tmp_path / "model.pt", small_network(1))
    network = network_from({"model": path}, replace(TINY, freeze=["decoder"]), config)
    trained = {name for name, each in network.decoder.named_parameters() if each.requires_grad}
    assert trained == {f"presence.{name}" for name, _ in network.decoder.presence.named_parameters()}


@pytest.mark.parametrize(
    ("freeze", "words"),
    [
        (["text_encoder"], "freeze: the text_encoder would stay at random; name its weights in init_from"),
        (["backbon"], "unknown part to freeze 'backbon'; did you mean 'backbone'"),
        ("backbone", "freeze must be a list, each a text"),
        (["backbone", "pixel_decoder", "text_encoder", "decoder"], "nothing is left to train"),
    ],
)
def test_what_cannot_be_frozen(tmp_path: Path, freeze: Any, words: str):
    path = saved(tmp_path / "model.pt", small_network(1))
    with pytest.raises(ConfigError, match=words):
        network_from({"backbone": path}, replace(TINY, freeze=freeze))


def test_own_learning_rates():
    network = small_network(0)
    network.pixel_decoder.requires_grad_(False)
    optimizer = make_optimizer(
        network, learning_rate=1e-3, weight_decay=0.1, decay_norms=False, backbone_lr_factor=0.1, text_lr_factor=0.5
    )
    rate = {id(each): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for each in g["params"]}
    expected = {"backbone": 1e-4, "text_encoder": 5e-4, "decoder": 1e-3}
    for name, parameter in network.named_parameters():
        part = name.partition(".")[0]
        decay = 0.1 if parameter.dim() > 1 else 0.0
        found = rate.get(id(parameter))
        assert found == (None if part == "pixel_decoder" else (pytest.approx(expected[part]), decay)), name
    (group,) = make_optimizer(network, learning_rate=1e-3, weight_decay=0.1).param_groups
    assert len(group["params"]) == len(rate)


def test_a_learning_rate_of_nothing_leaves_the_backbone(tmp_path: Path):
    """The settings reach the optimiser of the bundle."""
    slices = write_dataset(tmp_path / "slices")
    path = saved(tmp_path / "model.pt", small_network(1))
    run = train(tmp_path, slices, "run", epochs=1, init_from={"model": str(path)}, backbone_lr_factor=0)
    network, _ = load_checkpoint(run / "last.pt")
    changed = {name for name, _ in network.named_parameters()} & differing(network, small_network(1))
    assert {name.partition(".")[0] for name in changed} == {"pixel_decoder", "text_encoder", "decoder"}
    with pytest.raises(ConfigError, match="text_lr_factor must be at least 0"):
        replace(TINY, text_lr_factor=-1.0)


def test_a_restricting_licence_stays_with_the_model(tmp_path: Path):
    def restrict(content: dict[str, Any]) -> None:
        earlier = [{"part": "backbone", "source": "facebook/sam2-hiera-small"}, {"part": "decoder", "source": "here"}]
        content["description"]["data"] |= {"licence": RESTRICTED.as_dict(), "initial_weights": earlier}

    path = saved(tmp_path / "model.pt", small_network(1), restrict)
    data = find_initial_weights({"backbone": path}, config=CONFIG).data
    assert Licence.of(data) == RESTRICTED
    assert [each["source"] for each in data["initial_weights"]] == [
        "a checkpoint of this package",
        "facebook/sam2-hiera-small",
    ]
    assert data["initial_weights"][0]["licence"] == "CC-BY-NC-4.0"


def test_the_catalogue_tells_origin_and_licence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """By the hash where it is known, else by the place in the hub's cache."""
    config = network_config("hiera_s", image_size=64, text_layers=1)
    torch.save({"model": sam2_state(training_network(config, TINY, device=CPU))}, tmp_path / "renamed.pt")
    places = {"backbone": tmp_path / "renamed.pt"}
    (entry,) = find_initial_weights(places, config=config).data["initial_weights"]
    assert entry["source"] == SOURCES.make("sam2", settings={}).title
    assert "licence" not in entry
    known = "95949964d4e548409021d47b22712d5f1abf2564cc0c3c765ba599a24ac7dce3"
    monkeypatch.setattr("boltzformer_monai.models.initial.file_sha256", lambda _: known)
    data = find_initial_weights(places, config=config).data
    (entry,) = data["initial_weights"]
    assert (entry["source"], entry["licence"]) == ("facebook/sam2-hiera-small", "Apache-2.0")
    assert "licence" not in data


def hippocampi(shared_data: Path, root: Path, count: int = 4) -> Path:
    """The middle slices of some subjects."""

    def middle(volume: Volume) -> Volume:
        return replace(volume, array=volume.array[..., 12:22])

    writer = SliceWriter(root, name="hippocampi")
    folder = shared_data / "msd_hippocampus"
    for number, path in enumerate(sorted((folder / "labelsTr").glob("*.nii.gz"))[:count]):
        writer.add_volume(
            middle(read_volume(folder / "imagesTr" / path.name, modality="MR")),
            middle(read_label_map(path)),
            {1: "anterior hippocampus", 2: "posterior hippocampus"},
            volume_id=path.name.partition(".")[0],
            patient=path.name,
            site="brain",
            split="val" if number % 4 == 0 else "train",
        )
    return root


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["phantoms", "real"])
def test_weights_of_a_longer_run_give_a_lower_loss(tmp_path: Path, kind: str, request: pytest.FixtureRequest):
    """Two epochs from them, and two from random weights, on the same slices."""
    if kind == "real":
        slices, longer = hippocampi(request.getfixturevalue("shared_data"), tmp_path / "slices"), 8
    else:
        slices, longer = write_dataset(tmp_path / "slices", patients=4, slices=6), 8
    first = train(tmp_path, slices, "longer", epochs=longer)
    random = train(tmp_path, slices, "random", epochs=2)
    started = train(tmp_path, slices, "started", epochs=2, init_from={"model": str(first / "model")}, seed=1)

    def losses(run: Path) -> list[dict[str, float]]:
        return json.loads((run / "history.json").read_text())

    assert losses(started)[0]["train_loss"] < losses(random)[0]["train_loss"]
    assert losses(started)[-1]["val_loss"] < losses(random)[-1]["val_loss"]
    (entry,) = load_checkpoint(started / "model.pt")[1].data["initial_weights"]
    assert entry["sha256"] == file_sha256(first / "model" / "model.safetensors")
