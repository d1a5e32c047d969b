"""Checkpoints: what was saved comes back, and what is not a checkpoint is refused in one line."""

from __future__ import annotations

import io
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from boltzformer_monai.engines.trainer import Checkpoints
from boltzformer_monai.errors import CheckpointError, StorageError
from boltzformer_monai.networks import BoltzFormer, NetworkConfig, create_boltzformer, network_config
from boltzformer_monai.networks.weights import (
    Description,
    load_checkpoint,
    load_strictly,
    read_weights,
    save_checkpoint,
)
from tests.networks.cases import SMALL, images, prompts, small_network

LIVER = {"target": "liver", "modality": "CT", "site": "abdomen", "window": {"kind": "stored"}}
DATA = {"plane": "axial", "targets": [LIVER]}
QUERIES = "decoder.query_decoder.query_feat.weight"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[BoltzFormer, Path]:
    """A network and the file that the trainer writes of it."""
    folder = tmp_path_factory.mktemp("models")
    network = small_network(7)
    Checkpoints(folder, network, Description(network_config("tiny", **SMALL), DATA)).save_last()
    return network, folder / "last.pt"


def test_what_training_saves_comes_back(saved: tuple[BoltzFormer, Path]):
    network, path = saved
    loaded, description = load_checkpoint(path)
    assert not loaded.training
    assert description.network == network_config("tiny", **SMALL)
    assert description.data == DATA
    image, tokens = images(2), prompts(4, 3, batch=2)
    assert torch.equal(loaded(image, tokens), network(image, tokens))


def test_every_setting_is_part_of_the_description():
    config = network_config("hiera_s", pretrained=True, sample_ratio=0.2, exact=True, mean=[0.1, 0.2, 0.3])
    state = Description(config, DATA).state_dict()
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    other = Description(NetworkConfig(backbone="tiny", image_size=32), {})
    other.load_state_dict(torch.load(buffer, weights_only=True))
    # The weights are in the checkpoint: loading it must not fetch the backbone's again.
    assert other.network == network_config("hiera_s", sample_ratio=0.2, exact=True, mean=[0.1, 0.2, 0.3])
    assert other.data == DATA


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path):
    resource = pytest.importorskip("resource")
    path = tmp_path / "model.pt"
    save_checkpoint({"model": {"a": torch.ones(3)}}, path)
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
    try:
        with pytest.raises(StorageError, match=r"model\.pt: cannot be written \(File too large\); free space"):
            save_checkpoint({"model": {"a": torch.zeros(1 << 18)}}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def altered(path: Path, target: Path, change: Any) -> Path:
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, target)
    return target


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda c: c["model"].pop(QUERIES),
            rf"1 missing \({QUERIES}\)",
        ),
        (lambda c: c["model"].update(stray=torch.ones(1)), r"1 unknown \(stray\)"),
        (
            lambda c: c["model"].update({QUERIES: torch.ones(2, 2)}),
            rf"1 of another shape \({QUERIES}\)",
        ),
        (lambda c: c["model"].update(mean=0.5), "entry 'mean' is no tensor"),
        (lambda c: c.update(model=[1]), "no description of its network"),
        (lambda c: c.pop("description"), "no description of its network"),
        (lambda c: c.update(description="tiny"), "no description of its network"),
        (lambda c: c["description"].update(format="other"), "not a BoltzFormer checkpoint of version 1 or 2"),
        (lambda c: c["description"].update(version=3), "not a BoltzFormer checkpoint of version 1 or 2"),
        (lambda c: c["description"].pop("network"), "description cannot be used"),
        (lambda c: c["description"].update(network=5), "description cannot be used"),
        (lambda c: c["description"]["network"].update(flux=1), "newer version: unknown network settings flux"),
        (lambda c: c["description"]["network"].update(dim=-4), "dim must be a whole number"),
        (lambda c: c["description"]["network"].update(heads=3), "not divisible by heads 3"),
        (lambda c: c["description"]["network"].update(text_heads=5), "width 16 is not divisible by its heads 5"),
        (lambda c: c["description"]["network"].update(queries=4), "of another shape"),
    ],
)
def test_altered_checkpoints_are_refused(saved: tuple[BoltzFormer, Path], tmp_path: Path, change: Any, words: str):
    path = altered(saved[1], tmp_path / "altered.pt", change)
    with pytest.raises(CheckpointError, match=words) as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_strict_loading_loads_nothing_of_what_does_not_fit():
    network = torch.nn.Linear(2, 2)
    before = network.weight.clone()
    with pytest.raises(CheckpointError, match=r"somewhere does not fit this network: weights 1 missing \(bias\)"):
        load_strictly(network, {"weight": torch.ones(2, 2)}, source="somewhere")
    assert torch.equal(network.weight, before)


class _Renaming(torch.nn.Linear):
    """A guest's module whose weight had another name once, and that keeps a state beside its weights."""

    def __init__(self) -> None:
        super().__init__(2, 2, bias=False)
        self.state: object = None
        self.register_load_state_dict_pre_hook(self._rename)

    @staticmethod
    def _rename(module: torch.nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
        if f"{prefix}kernel" in state:
            state[f"{prefix}weight"] = state.pop(f"{prefix}kernel")

    def get_extra_state(self) -> object:
        return self.state

    def set_extra_state(self, state: object) -> None:
        self.state = state


@pytest.mark.parametrize("name", ["weight", "kernel"])
@pytest.mark.parametrize("state", [{"steps": 3}, torch.arange(5)])
def test_modules_that_load_in_their_own_way_do_so(name: str, state: Any):
    network = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), _Renaming())
    weights = {"0.weight": torch.zeros(2, 2), f"1.{name}": torch.ones(2, 2), "1._extra_state": state}
    load_strictly(network, weights, source="somewhere")
    assert torch.equal(network[0].weight, torch.zeros(2, 2))
    assert torch.equal(network[1].weight, torch.ones(2, 2))
    assert network[1].state is state


def test_a_module_that_renames_does_not_make_loading_less_strict():
    network = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), _Renaming())
    before = [parameter.clone() for parameter in network.parameters()]
    weights = {"0.weight": torch.zeros(2, 2), "1.kernel": torch.ones(2, 2), "1._extra_state": 1, "2.x": torch.ones(1)}
    with pytest.raises(CheckpointError, match=r"1\.kernel, 2\.x"):
        load_strictly(network, weights, source="somewhere")
    assert all(torch.equal(*pair) for pair in zip(network.parameters(), before, strict=True))


def test_quantised_numbers_are_not_taken_for_weights():
    with pytest.raises(CheckpointError, match=r"1 of another kind of number \(weight\)"):
        load_strictly(torch.nn.Linear(2, 2, bias=False), {"weight": torch.ones(2, 2, dtype=torch.int8)}, source="x")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["mean", "decoder.query_decoder.query_feat.weight"])
def test_weights_that_are_no_numbers_are_refused(
    saved: tuple[BoltzFormer, Path], tmp_path: Path, name: str, value: float
):
    """Every mask would be empty, and nothing would say so."""

    def change(content: dict[str, Any]) -> None:
        content["model"][name].flatten()[-1] = value

    with pytest.raises(CheckpointError, match=f"its weight {name} holds numbers that are not finite"):
        load_checkpoint(altered(saved[1], tmp_path / "altered.pt", change))


def test_many_misfits_are_counted_and_the_first_named():
    with pytest.raises(CheckpointError, match=r"12 unknown \(a0, a1, a10, …\)"):
        load_strictly(torch.nn.Identity(), {f"a{i}": torch.ones(1) for i in range(12)}, source="x")


def test_no_such_file(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*model.pt; train one"):
        load_checkpoint(tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="is a folder, not a checkpoint"):
        load_checkpoint(tmp_path)


class Malicious:
    """Unpickled carelessly, it makes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.target,))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, writer: str):
    path, trace = tmp_path / "model.pt", tmp_path / "was_run"
    if writer == "torch":
        torch.save({"model": Malicious(trace)}, path)
    else:
        path.write_bytes(pickle.dumps({"model": Malicious(trace)}))
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
        load_checkpoint(path)
    assert not trace.exists()
    torch.load(path, weights_only=False) if writer == "torch" else pickle.loads(path.read_bytes())
    assert trace.exists()  # so the file was dangerous indeed


@pytest.mark.parametrize("content", [b"", b"hello, this is text\n", b"\x80", b"PK\x03\x04" + bytes(100), bytes(1000)])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_files_of_something_else(tmp_path: Path, content: bytes, suffix: str):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
        load_checkpoint(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_cut_off_and_altered_files_never_raise_anything_else(tmp_path: Path):
    path = tmp_path / "model.pt"
    source = random.Random(0)
    for zipped in (True, False):
        buffer = io.BytesIO()
        torch.save({"model": {"a": torch.ones(3)}}, buffer, _use_new_zipfile_serialization=zipped)
        good = buffer.getvalue()
        refused = 0
        for _ in range(150):
            damaged = bytearray(good[: source.randrange(1, len(good))] if source.random() < 0.5 else good)
            for _ in range(source.randint(1, 4)):
                damaged[source.randrange(len(damaged))] = source.randrange(256)
            path.write_bytes(damaged)
            try:
                read_weights(path)
            except CheckpointError:
                refused += 1
        assert refused > 75


def test_a_tensor_alone_is_no_checkpoint(tmp_path: Path):
    torch.save(torch.ones(3), tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="holds a Tensor, not a checkpoint"):
        load_checkpoint(tmp_path / "model.pt")


def test_safetensors_are_read(tmp_path: Path):
    weights = {"a": torch.arange(3.0), "b": torch.ones(2, 2, dtype=torch.bfloat16)}
    save_file(weights, tmp_path / "weights.safetensors")
    read = read_weights(tmp_path / "weights.safetensors")
    assert set(read) == {"a", "b"}
    assert all(torch.equal(read[name], weights[name]) for name in weights)
    with pytest.raises(CheckpointError, match="no description of its network"):
        load_checkpoint(tmp_path / "weights.safetensors")


def test_a_description_of_another_network_is_refused(tmp_path: Path, saved: tuple[BoltzFormer, Path]):
    content = torch.load(saved[1], weights_only=True)
    content["model"] = create_boltzformer("tiny", **{**SMALL, "queries": 5}).state_dict()
    torch.save(content, tmp_path / "mixed.pt")
    with pytest.raises(CheckpointError, match="of another shape"):
        load_checkpoint(tmp_path / "mixed.pt")


def as_version_1(content: dict[str, Any]) -> None:
    """Rename the weights to where version 1 had them."""
    for part in ("query_decoder", "aggregation", "presence"):
        new, old = f"decoder.{part}.", "decoder." if part == "query_decoder" else f"{part}."
        for name in [name for name in content["model"] if name.startswith(new)]:
            content["model"][old + name.removeprefix(new)] = content["model"].pop(name)
    for setting in ("backbone_settings", "decoder", "decoder_settings", "policy_settings"):
        del content["description"]["network"][setting]
    content["description"]["version"] = 1


def test_checkpoints_of_version_1_are_read(tmp_path: Path):
    config = network_config("tiny", **{**SMALL, "presence": True, "policy": "threshold", "threshold": 0.4})
    network = create_boltzformer(config).eval()
    Checkpoints(tmp_path, network, Description(config, DATA)).save_last()
    path = altered(tmp_path / "last.pt", tmp_path / "old.pt", as_version_1)
    assert "aggregation.conv.bias" in torch.load(path, weights_only=True)["model"]
    loaded, description = load_checkpoint(path)
    assert description.network == config
    image, tokens = images(2), prompts(4, 3, batch=2)
    found, expected = (each(image, tokens, with_presence=True) for each in (loaded, network))
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(found.presence, expected.presence)


def test_version_1_had_one_setting_of_focal_nets():
    description = Description(NetworkConfig(backbone="tiny", image_size=32), {})
    state = Description(network_config("focal_l"), DATA).state_dict()
    del state["network"]["backbone_settings"]
    description.load_state_dict({**state, "version": 1})
    assert description.network == network_config("focal_l")


def test_whoever_wrote_a_checkpoint_cannot_make_this_machine_fetch_weights(
    saved: tuple[BoltzFormer, Path], tmp_path: Path
):
    path = altered(saved[1], tmp_path / "a.pt", lambda c: c["description"]["network"].update(pretrained=True))
    assert not load_checkpoint(path)[1].network.pretrained


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"decoder": "dott"}, "unknown decoder 'dott'; known: .*boltzmann.* --plugin MODULE"),
        ({"policy": "best"}, "unknown attention policy 'best'; known: .* --plugin MODULE"),
        ({"backbone": "of_somebody"}, "timm has no model 'of_somebody'; .* --plugin MODULE"),
        ({"decoder_settings": {"scale": 1}}, "unknown setting 'scale' of the decoder 'boltzmann'"),
        ({"backbone": "test_resnet", "backbone_settings": {"checkpoint_path": "x"}}, "checkpoint_path is no backbone"),
        ({"backbone": "test_resnet", "backbone_settings": {"pretrained": True}}, "pretrained is no backbone setting"),
        ({"backbone": 3}, "backbone must be a text, got 3"),
    ],
)
def test_what_a_checkpoint_names_is_not_there(
    saved: tuple[BoltzFormer, Path], tmp_path: Path, settings: dict[str, Any], words: str
):
    path = altered(saved[1], tmp_path / "altered.pt", lambda c: c["description"]["network"].update(settings))
    with pytest.raises(CheckpointError, match=words) as caught:
        load_checkpoint(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
