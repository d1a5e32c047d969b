"""Exported graphs find what the network finds, and a graph that does not is never written."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from boltzformer_monai.deploy.export import export_model
from boltzformer_monai.deploy.formats import FORMATS, OnnxFormat, RunGraph
from boltzformer_monai.deploy.graphs import Graph, graphs_of, plain_network
from boltzformer_monai.deploy.parity import Case, Parity, compare, made_up_image, reference
from boltzformer_monai.errors import ConfigError
from boltzformer_monai.models.folder import load_model
from boltzformer_monai.networks import Decoded, ImageFeatures, TextFeatures, create_boltzformer, network_config
from boltzformer_monai.networks.registries import DECODERS
from boltzformer_monai.storage import file_sha256
from boltzformer_monai.transforms import PromptTokenizer
from tests.deploy.conftest import TEXTS, TINIEST, balanced, write_balanced
from tests.networks.cases import SMALL, randomise
from tests.sizes import cases

onnxruntime = pytest.importorskip("onnxruntime")
SIZES = [(1, 1), (1, 5), (2, 2), (3, 4), (2, 5), (3, 3)]
"""Images and prompts; equal numbers too, which hide an exchange of the two axes from a check of shapes."""


def graphs_in(folder: Path) -> dict[str, Any]:
    """Sessions by the name of their graph, as a program without this package has them."""
    about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return {name: onnxruntime.InferenceSession(folder / graph["file"]) for name, graph in about["graphs"].items()}


def run(sessions: dict[str, Any], **known: np.ndarray) -> dict[str, np.ndarray]:
    """All three, each given what it names."""
    for name in ("image_encoder", "text_encoder", "decoder"):
        wanted = {each.name: known[each.name] for each in sessions[name].get_inputs()}
        found = sessions[name].run(None, wanted)
        known |= dict(zip((each.name for each in sessions[name].get_outputs()), found, strict=True))
    return known


def parities(network: Any, sessions: dict[str, Any], channels: int, size: int) -> list[Parity]:
    """For all sizes and two seeds."""
    tokens = PromptTokenizer()(TEXTS)
    found = []
    for index, (images, prompts) in enumerate(SIZES):
        case = reference(
            network,
            made_up_image(images, channels, size, seed=index),
            F.pad(tokens[-prompts:], (0, (0, 9, 77 - tokens.shape[1])[index % 3]), value=-1),
            seed=7919 * (index % 2),
        )
        outputs = run(sessions, **{name: value.numpy() for name, value in case.inputs().items()})
        tensors = {name: torch.from_numpy(outputs[name]) for name in ("logits", "presence") if name in outputs}
        assert tensors["logits"].shape == (images, prompts, size // 2, size // 2)
        found.append(compare([case], [tensors]))
    return found


@pytest.mark.slow
def test_any_number_of_images_and_prompts_in_onnxruntime(small_model: Path, small_onnx: Path) -> None:
    network = load_model(small_model).network
    for parity in parities(network, graphs_in(small_onnx), 1, SMALL["image_size"]):
        assert parity.equal_pixels >= 0.9999
        assert parity.presence is not None
        assert parity.presence <= 1e-4
        assert parity.logits <= 1e-4


SHALLOW = {
    "image_size": 128,
    "dim": 64,
    "hidden": 64,
    "layers": 1,
    "pixel_layers": 1,
    "text_width": 64,
    "text_layers": 1,
}
PRESETS = [("hiera_s", SHALLOW), ("tiny", {}), ("hiera_s", {"image_size": 256}), ("hiera_s", {})]


@pytest.mark.parametrize(("preset", "overrides"), cases([], thorough=PRESETS))
def test_the_presets_in_onnxruntime(preset: str, overrides: dict[str, Any], tmp_path: Path) -> None:
    config = network_config(preset, **overrides)
    model = write_balanced(tmp_path / "model", config)
    export_model(model, tmp_path / "onnx", to="onnx")
    network = load_model(model).network
    for parity in parities(network, graphs_in(tmp_path / "onnx"), 1, config.image_size):
        assert parity.holds


def test_the_seed_decides_the_draws(small_model: Path, small_onnx: Path) -> None:
    sessions = graphs_in(small_onnx)
    image, tokens = made_up_image(1, 1, SMALL["image_size"]).numpy(), PromptTokenizer()(TEXTS).numpy()
    once, again, other, large = (
        run(sessions, image=image, tokens=tokens, seed=np.array(seed))["logits"] for seed in (5, 5, 6, 2**31 - 1)
    )
    assert np.array_equal(once, again)
    assert np.abs(once - other).max() > 1e-4
    network = load_model(small_model).network
    case = reference(network, torch.from_numpy(image), torch.from_numpy(tokens), seed=2**31 - 1)
    assert np.abs(case.expected.logits.numpy() - large).max() < 1e-5  # the hash of the largest seed does not overflow


@pytest.mark.slow
def test_torch_export_gives_the_same(tmp_path: Path) -> None:
    model = write_balanced(tmp_path / "model", network_config("tiny", **{**TINIEST, "layers": 1}))
    assert export_model(model, tmp_path / "torch", to="torch").holds
    root = str(Path(__file__).resolve().parents[2]).encode()
    for path in (tmp_path / "torch").glob("*.pt2"):
        with zipfile.ZipFile(path) as archive:
            assert not any(root in archive.read(name) for name in archive.namelist())
    case = reference(
        load_model(model).network, made_up_image(3, 1, SMALL["image_size"]), PromptTokenizer()(TEXTS), seed=3
    )
    known = case.inputs()
    about = json.loads((tmp_path / "torch" / "config.json").read_text(encoding="utf-8"))
    for graph in about["graphs"].values():
        module = torch.export.load(tmp_path / "torch" / graph["file"]).module()
        found = module(*(known[each["name"]] for each in graph["inputs"]))
        known |= dict(zip((each["name"] for each in graph["outputs"]), found, strict=True))
    assert compare([case], [known]).holds


def test_the_folder_says_all_that_its_user_needs(small_model: Path, small_onnx: Path) -> None:
    about = json.loads((small_onnx / "config.json").read_text(encoding="utf-8"))
    model = load_model(small_model)
    assert about["model_sha256"] == model.sha256
    assert about["description"] == json.loads(json.dumps(model.description.state_dict()))
    assert about["image"] == {"size": 64, "channels": 1}
    assert about["parity"]["equal_pixels"] >= 0.9999
    sessions = graphs_in(small_onnx)
    for name, graph in about["graphs"].items():
        assert graph["sha256"] == {graph["file"]: file_sha256(small_onnx / graph["file"])}
        for side, found in (("inputs", sessions[name].get_inputs()), ("outputs", sessions[name].get_outputs())):
            assert [each["name"] for each in graph[side]] == [each.name for each in found]
            for said, each in zip(graph[side], found, strict=True):
                fixed = [length if isinstance(length, int) else None for length in each.shape]
                assert [length if isinstance(length, int) else None for length in said["shape"]] == fixed
    decoder = {each["name"]: each for side in ("inputs", "outputs") for each in about["graphs"]["decoder"][side]}
    assert decoder["text"]["shape"] == ["prompts", "tokens", 16]
    assert decoder["seed"] == {"name": "seed", "dtype": "int64", "shape": []}
    assert decoder["presence"]["shape"] == ["batch", "prompts"]


def test_a_licence_goes_with_the_graphs(small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMATS, "onnx", Untranslated())
    licence = {"name": "CC-BY-NC-SA-4.0", "restricted": True, "url": "https://example.org", "terms": "research only"}
    config = load_model(small_model).description.network
    write_balanced(tmp_path / "model", config, licence=licence)
    export_model(tmp_path / "model", tmp_path / "onnx", to="onnx")
    assert json.loads((tmp_path / "onnx" / "config.json").read_text(encoding="utf-8"))["licence"] == licence


class Untranslated(OnnxFormat):
    """Writes nothing of worth, and computes in PyTorch what a wrong graph would find."""

    def __init__(self, error: float = 0.0) -> None:
        self.error = error

    def write(self, graph: Graph, path: Path) -> None:
        path.write_bytes(b"graph")

    def load(self, graph: Graph, path: Path) -> RunGraph:
        def run_graph(inputs: Any) -> dict[str, Tensor]:
            with torch.no_grad():
                found = graph.module(*(inputs[name] for name in graph.inputs))
            outputs = dict(zip(graph.outputs, found, strict=True))
            if "presence" in outputs:
                outputs["presence"] = outputs["presence"] + self.error
            return outputs

        return run_graph


def test_a_wrong_graph_is_not_written(small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "out"
    monkeypatch.setitem(FORMATS, "onnx", Untranslated())
    export_model(small_model, output, to="onnx")
    before = sorted((path.name, path.read_bytes()) for path in output.iterdir())
    monkeypatch.setitem(FORMATS, "onnx", Untranslated(error=0.01))
    with pytest.raises(ConfigError, match=r"find other masks than the network .*; nothing is written"):
        export_model(small_model, output, to="onnx")
    assert sorted((path.name, path.read_bytes()) for path in output.iterdir()) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_other_files_are_not_replaced(small_model: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    for place in (tmp_path, small_model):
        with pytest.raises(ConfigError, match="it holds something else"):
            export_model(small_model, place, to="torch")
    assert (tmp_path / "notes.txt").read_text(encoding="utf-8") == "mine"


def test_missing_packages_and_unknown_forms_are_named_before_the_model_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name.startswith("onnx") else name)
    with pytest.raises(ConfigError, match=r"needs onnx and onnxscript and onnxruntime; pip install .*\[deploy\]"):
        export_model(tmp_path / "none", tmp_path / "out", to="onnx")
    with pytest.raises(ConfigError, match="unknown form of graphs 'onx'; did you mean 'onnx'"):
        export_model(tmp_path / "none", tmp_path / "out", to="onx")


class Counting(nn.Module):
    """A decoder that branches on a value, which no graph can."""

    def forward(self, image: ImageFeatures, text: TextFeatures, *, generator: Any = None) -> Decoded:
        logits = image.semantic_map[:, :1].expand(-1, text.tokens.shape[1], -1, -1)
        return Decoded(logits if float(logits.mean()) > 0 else -logits)


def test_a_decoder_that_cannot_be_traced_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DECODERS._factories, "counting", lambda config: Counting())
    config = network_config("tiny", **{**SMALL, "decoder": "counting"})
    network = create_boltzformer(config).eval()
    case = reference(network, made_up_image(1, 1, 64), PromptTokenizer()(TEXTS[:1]), seed=0)
    decoder = graphs_of(network, config, case.expected)[-1]
    for name, words in (("torch", "exported by torch.export"), ("onnx", "exported to ONNX")):
        with pytest.raises(ConfigError, match=rf"^the decoder 'counting' .* cannot be {words}: \S+") as caught:
            FORMATS[name].write(decoder, tmp_path / "decoder")
        assert "\n" not in str(caught.value)


OTHERS = [
    {"neighbours": 1, "per_head": True, "text_prior": False},
    {"level_logits": "max", "policy_settings": {"at_least_one": True}},
    {"decoder": "biomedparse", "decoder_settings": {"edge_queries": 1, "attend_padding": True}, "presence": True},
]
MORE = [
    {"policy": "threshold", "pigma_correction": False, "image_size": 96},
    {"in_channels": 3, "mean": (0.3,) * 3, "std": (0.2,) * 3, "exact": True},
    {"policy": "full", "layers": 3},
    {"decoder": "sam", "decoder_settings": {"prompt_tokens": 77}, "presence": True},
    {"decoder": "sam2", "decoder_settings": {"prompt_tokens": 77}, "presence": True},
    {"decoder": "seem", "presence": True},
]


@pytest.mark.slow
@pytest.mark.parametrize("overrides", cases(OTHERS, thorough=MORE))
def test_the_graphs_of_other_networks_are_the_network(overrides: dict[str, Any]) -> None:
    config = network_config("tiny", **{**SMALL, "layers": 1, **overrides})
    torch.manual_seed(0)
    network = randomise(create_boltzformer(config)).eval()
    image = made_up_image(3, 2 * config.neighbours + 1, config.image_size)
    case = reference(network, image, PromptTokenizer()(TEXTS), seed=4)
    known = case.inputs()
    with torch.no_grad():
        for graph in graphs_of(plain_network(network, config), config, case.expected):
            module = graph.program().module() if graph.name == "decoder" else graph.module
            known |= dict(zip(graph.outputs, module(*(known[name] for name in graph.inputs)), strict=True))
    assert compare([case], [known]).holds
    if case.expected.edges is not None:
        assert torch.allclose(case.expected.edges, known["edges"], atol=1e-4)


def test_an_export_is_as_large_as_the_weights(small_model: Path, small_onnx: Path) -> None:
    weights = (small_model / "model.safetensors").stat().st_size
    graphs = sum(path.stat().st_size for path in small_onnx.glob("*.onnx"))
    assert weights < graphs < weights + 500_000  # no constants of the draws among them


def test_large_weights_lie_beside_their_graph(
    small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("boltzformer_monai.deploy.formats._LARGEST_FILE", 1_000_000)
    model = load_model(small_model)
    config = model.description.network
    case = reference(model.network, made_up_image(1, 1, 64), PromptTokenizer()(TEXTS), seed=0)
    graph = graphs_of(plain_network(model.network, config), config, case.expected)[1]
    (tmp_path / "written").mkdir()
    FORMATS["onnx"].write(graph, tmp_path / "written" / "text.onnx")
    (tmp_path / "written").rename(tmp_path / "moved")
    assert (tmp_path / "moved" / "text.onnx").stat().st_size < 500_000
    assert (tmp_path / "moved" / "text.onnx.data").stat().st_size > 1_000_000
    found = FORMATS["onnx"].load(graph, tmp_path / "moved" / "text.onnx")(case.inputs())
    assert torch.allclose(found["text"], model.network.encode_text(case.tokens[None]).tokens[0], atol=1e-5)


def test_nothing_tells_where_it_was_exported(small_onnx: Path) -> None:
    root = str(Path(__file__).resolve().parents[2]).encode()
    for path in small_onnx.iterdir():
        assert root not in path.read_bytes(), path.name


def test_other_draws_are_found_even_where_all_masks_are_empty() -> None:
    network = balanced(network_config("tiny", **TINIEST))
    image, tokens = made_up_image(2, 1, 64), PromptTokenizer()(TEXTS)
    case, other = (reference(network, image, tokens, seed=seed) for seed in (0, 1))
    empty = replace(case, expected=case.expected._replace(logits=case.expected.logits - 100))
    for shift, parity in (
        (0, compare([empty], [{**_tensors(case), "logits": case.expected.logits - 100}])),
        (1, compare([empty], [{**_tensors(case), "logits": other.expected.logits - 100}])),
    ):
        assert parity.equal_pixels == 1
        assert parity.holds == (not shift)


def _tensors(case: Case) -> dict[str, Tensor]:
    return {name: value for name, value in case.expected._asdict().items() if value is not None}
