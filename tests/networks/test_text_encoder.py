from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel, CLIPTextConfig, CLIPTextModel

from boltzformer_monai.errors import CheckpointError, ConfigError, PromptError
from boltzformer_monai.networks.text_encoder import TextEncoder, clip_text_encoder, pretrained_text_encoder
from tests.networks.cases import prompts, small_network

SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 20,
}


@pytest.fixture(scope="module")
def clip() -> TextEncoder:
    torch.manual_seed(0)
    return clip_text_encoder(dim=12, width=16, layers=2, heads=2, context=10).eval()


@pytest.fixture(scope="module", params=["bert", "clip"])
def model_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    if request.param == "bert":
        BertModel(BertConfig(**SIZES)).save_pretrained(folder)
    else:
        CLIPTextModel(CLIPTextConfig(**SIZES, bos_token_id=48, eos_token_id=49)).save_pretrained(folder)
    return folder


def test_shapes_and_validity(clip: TextEncoder):
    tokens = prompts(5, 3, batch=2)
    embedded, valid = clip(tokens)
    assert embedded.shape == (2, 2, 5, 12)
    assert torch.equal(valid, tokens >= 0)
    assert not embedded[~valid].any()
    assert embedded[valid].abs().amax(-1).min() > 0


def test_padding_changes_nothing(clip: TextEncoder):
    short = prompts(4, 4, batch=2)
    alone, _ = clip(short)
    padded, valid = clip(torch.nn.functional.pad(short, (0, 6), value=-1))
    torch.testing.assert_close(padded[:, :, :4], alone)
    assert int(valid.sum()) == 16


def test_prompts_of_other_lengths_change_nothing(clip: TextEncoder):
    together, _ = clip(prompts(7, 3, 5))
    for index, length in enumerate((7, 3, 5)):
        alone, _ = clip(prompts(7, 3, 5)[:, index : index + 1, :length])
        torch.testing.assert_close(together[:, index, :length], alone[:, 0])


def test_a_prompt_of_padding_only_is_harmless(clip: TextEncoder):
    embedded, valid = clip(torch.full((1, 1, 4), -1))
    assert not valid.any()
    assert not embedded.any()


def test_it_is_causal(clip: TextEncoder):
    tokens = prompts(6)
    changed = tokens.clone()
    changed[..., 4] += 1
    difference = (clip(tokens)[0] - clip(changed)[0]).abs().amax(-1)[0, 0]
    assert difference[:4].max() == 0
    assert difference[4:].min() > 0


def test_too_long_a_prompt(clip: TextEncoder):
    with pytest.raises(PromptError, match="11 tokens; .* at most 10"):
        clip(prompts(11))


def test_another_text_model_by_path(model_folder: Path):
    torch.manual_seed(0)
    encoder = pretrained_text_encoder(model_folder, dim=8).eval()
    assert encoder.context == 20
    tokens = torch.tensor([[[48, 7, 5, 49], [48, 49, -1, -1]]])
    embedded, valid = encoder(tokens)
    assert embedded.shape == (1, 2, 4, 8)
    assert int(valid.sum()) == 6
    torch.testing.assert_close(encoder(tokens[:, 1:, :2])[0][0, 0], embedded[0, 1, :2])
    # The weights are those of the folder, not random ones.
    again = pretrained_text_encoder(str(model_folder), dim=8)
    for name, weight in encoder.model.state_dict().items():
        assert torch.equal(weight, again.model.state_dict()[name]), name


def test_a_network_with_another_text_model(model_folder: Path):
    network = small_network(text_model=str(model_folder))
    image = torch.rand(1, 1, 64, 64)
    assert network(image, torch.tensor([[[48, 7, 49]]])).shape == (1, 1, 32, 32)
    with pytest.raises(ConfigError, match="no default prompt"):
        network(image)


def test_no_text_model_there(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"no transformers text model at .*config.json is missing"):
        pretrained_text_encoder(tmp_path / "nowhere", dim=8)


def test_a_text_model_without_its_weights(tmp_path: Path):
    BertConfig(**SIZES).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="cannot load the text model"):
        pretrained_text_encoder(tmp_path, dim=8)


def test_a_folder_of_something_else(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model_type": "no-such-model"}')
    with pytest.raises(CheckpointError, match="cannot load the text model"):
        pretrained_text_encoder(tmp_path, dim=8)
