"""2.5-D: training and inference show a network the same neighbours of the same slice."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from boltzformer_monai.data.slices.reader import SliceReader
from boltzformer_monai.data.slices.volume import SliceSettings
from boltzformer_monai.data.slices.writer import SliceWriter
from boltzformer_monai.errors import ConfigError, DatasetError
from boltzformer_monai.networks import Decoded, ImageFeatures, TextFeatures, create_boltzformer, network_config
from boltzformer_monai.transforms import LoadSliced, PromptTokenizer
from tests.data.slice_cases import add, make_volume
from tests.inferers.stubs import inferer


class Recorder(nn.Module):
    """Stands in for a network and keeps the images that it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1))
        self.inputs: list[Tensor] = []

    def encode_image(self, image: Tensor) -> ImageFeatures:
        self.inputs += list(image)
        return ImageFeatures((), image, image)

    def encode_text(self, tokens: Tensor) -> TextFeatures:
        return TextFeatures(tokens[..., None].float(), tokens >= 0)

    def decode(self, image: ImageFeatures, text: TextFeatures, *, generator: object = None) -> Decoded:
        return Decoded(image.image[:, :1].expand(-1, text.tokens.shape[1], -1, -1))


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
@pytest.mark.parametrize("mm", [0, 0.7, 2.5])
def test_training_and_inference_see_the_same_channels(tmp_path: Path, plane: str, mm: float) -> None:
    add(SliceWriter(tmp_path), plane=plane)
    rows = {row.slice_index: row for row in SliceReader(tmp_path).rows}
    load = LoadSliced(size=32, neighbours=2, neighbour_mm=mm)
    stored = [load({"rows": [rows[index]]})["image"] for index in sorted(rows)]
    network = Recorder()
    settings = {"window": "abdomen", "planes": plane, "modality": None}
    shown = inferer(PromptTokenizer(), 32, trained_plane=plane, neighbours=2, neighbour_mm=mm, **settings)
    shown.label_map(make_volume()[0], network)
    assert len(network.inputs) == len(stored) > 5
    for mine, theirs in zip(network.inputs, stored, strict=True):
        assert mine.shape == (5, 32, 32)
        assert torch.equal(mine, theirs)
    middle, ends = len(stored) // 2, stored[0]
    assert torch.equal(stored[middle][1], stored[middle - 1][2]) or mm
    assert torch.equal(ends[0], ends[2])  # beyond the first slice the first stands in


def test_neighbours_in_millimetres_lie_between_slices_and_are_interpolated(tmp_path: Path) -> None:
    add(SliceWriter(tmp_path))  # slices 5 mm apart
    rows = {row.slice_index: row for row in SliceReader(tmp_path).rows}
    load = LoadSliced(size=32, neighbours=1, neighbour_mm=2)
    below, here, above = (LoadSliced(size=32)({"rows": [rows[index]]})["image"][0] for index in (1, 2, 3))
    channels = load({"rows": [rows[2]]})["image"]
    half_a_level = 0.5 / 255 + 1e-6
    torch.testing.assert_close(channels[0], 0.6 * here + 0.4 * below, rtol=0, atol=half_a_level)
    assert torch.equal(channels[1], here)
    torch.testing.assert_close(channels[2], 0.6 * here + 0.4 * above, rtol=0, atol=half_a_level)
    same = LoadSliced(size=32, neighbours=1, neighbour_mm=5)({"rows": [rows[2]]})["image"]
    assert torch.equal(same, LoadSliced(size=32, neighbours=1)({"rows": [rows[2]]})["image"])


def test_a_thinned_out_data_set_keeps_the_slices_that_neighbours_in_millimetres_need(tmp_path: Path) -> None:
    settings = SliceSettings(plane="coronal", every=5, neighbours=1, neighbour_mm=1.5)  # slices 0.9 mm apart
    add(SliceWriter(tmp_path), settings=settings)
    reader = SliceReader(tmp_path)
    assert reader.volumes["case1"]["neighbours"] == 2
    assert LoadSliced(size=32, neighbours=1, neighbour_mm=1.5)({"rows": [reader.rows[0]]})["image"].shape == (3, 32, 32)
    with pytest.raises(DatasetError, match="needs 3 slices on either side, the data set keeps 2"):
        LoadSliced(size=32, neighbours=1, neighbour_mm=2.5)({"rows": [reader.rows[0]]})


def test_a_thinned_out_data_set_keeps_as_many_neighbours_as_it_says(tmp_path: Path) -> None:
    add(SliceWriter(tmp_path), settings=SliceSettings(every=4, neighbours=1))
    row = SliceReader(tmp_path).rows[0]
    assert LoadSliced(size=32, neighbours=1)({"rows": [row]})["image"].shape == (3, 32, 32)
    with pytest.raises(DatasetError, match="needs 2 slices on either side, the data set keeps 1; slice again"):
        LoadSliced(size=32, neighbours=2)({"rows": [row]})


def test_a_network_takes_neighbours_as_channels() -> None:
    config = network_config("tiny", neighbours=1, image_size=64)
    assert (config.in_channels, len(config.mean)) == (3, 3)
    assert network_config("hiera_s", neighbours=1).in_channels == 3
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    network = create_boltzformer(config).eval()
    with torch.inference_mode():
        assert network(image).shape[-2:] == network(image[:, :1].expand(-1, 3, -1, -1)).shape[-2:]
        assert not torch.equal(network(image), network(image.flip(1)))
    with pytest.raises(ConfigError, match="in_channels"):
        network_config("tiny", neighbours=2, in_channels=3)
    with pytest.raises(ConfigError, match="neighbours"):
        network_config("tiny", neighbours=-1)
    assert network_config("tiny", neighbours=1, neighbour_mm=2.5).in_channels == 3
    for wrong in ({"neighbour_mm": 2.0}, {"neighbours": 1, "neighbour_mm": -1.0}):
        with pytest.raises(ConfigError, match="neighbour_mm"):
            network_config("tiny", **wrong)
