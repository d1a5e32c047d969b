from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch

from boltzformer_monai.errors import CheckpointError, PromptError
from boltzformer_monai.networks.presets import _DEFAULT_TOKENS
from boltzformer_monai.networks.text_encoder import PADDING
from boltzformer_monai.transforms import PromptTokenizer
from boltzformer_monai.transforms.tokenizer import pad_tokens

BEGIN, END = 49406, 49407


@pytest.fixture(scope="module")
def tokenizer() -> PromptTokenizer:
    return PromptTokenizer()


def test_ids_are_clip_s(tokenizer: PromptTokenizer):
    # The ids of "a photo of a cat" are printed in CLIP's own documentation and tests.
    assert tokenizer.encode("a photo of a cat") == (BEGIN, 320, 1125, 539, 320, 2368, END)
    ids = tokenizer.encode("left kidney in abdominal ct")
    assert (ids[0], ids[-1]) == (BEGIN, END)
    assert all(0 < i < BEGIN for i in ids[1:-1])
    assert len(ids) >= 7


def test_the_default_prompt_of_networks_is_organ(tokenizer: PromptTokenizer):
    assert tokenizer.encode("organ") == _DEFAULT_TOKENS


@pytest.mark.parametrize("spelling", ["Left kidney in abdominal CT", "  left   KIDNEY in\tabdominal ct \n"])
def test_case_and_spaces_do_not_matter(tokenizer: PromptTokenizer, spelling: str):
    assert tokenizer.encode(spelling) == tokenizer.encode("left kidney in abdominal ct")


def test_words_do_matter(tokenizer: PromptTokenizer):
    assert tokenizer.encode("left kidney") != tokenizer.encode("right kidney")


@pytest.mark.parametrize("prompt", ["", "   ", "\t\n"])
def test_empty_prompts(tokenizer: PromptTokenizer, prompt: str):
    with pytest.raises(PromptError, match="the prompt is empty"):
        tokenizer.encode(prompt)


def test_too_long_prompts(tokenizer: PromptTokenizer):
    assert len(tokenizer.encode(" ".join(["cat"] * 75))) == 77
    with pytest.raises(PromptError, match=r"prompt 'cat cat .*\.\.\.' is longer than the 77 tokens"):
        tokenizer.encode(" ".join(["cat"] * 76))
    with pytest.raises(PromptError, match="longer than"):
        tokenizer.encode("x" * 10_000_000)
    with pytest.raises(PromptError, match="prompt 'left kidney' is longer than the 3 tokens"):
        PromptTokenizer(context=3).encode("left kidney")


@pytest.mark.parametrize("prompt", ["<|endoftext|>", "niño 肝 🫀", "liver (segment VIII) & 50 %", "\x00"])
def test_strange_prompts_are_tokens_too(tokenizer: PromptTokenizer, prompt: str):
    ids = tokenizer.encode(prompt)
    assert all(0 <= i <= END for i in ids)


def test_prompts_are_padded_behind(tokenizer: PromptTokenizer):
    tokens = tokenizer(["liver", "left kidney in abdominal CT"])
    assert tokens.dtype == torch.int64
    short, long = (tokenizer.encode(text) for text in ("liver", "left kidney in abdominal CT"))
    assert tokens.tolist() == [[*short, *[PADDING] * (len(long) - len(short))], list(long)]
    assert tokenizer(["liver"], length=20).shape == (1, 20)
    assert tokenizer(["left kidney in abdominal CT"], length=2).shape == (1, len(long))
    assert pad_tokens([]).shape == (0, 1)


@pytest.mark.parametrize("clone", [lambda x: pickle.loads(pickle.dumps(x)), copy.deepcopy])
def test_it_travels_to_the_workers_of_a_data_loader(tokenizer: PromptTokenizer, clone: object):
    other = clone(PromptTokenizer(context=9))
    assert other.context == 9
    assert other.encode("left kidney") == tokenizer.encode("left kidney")


def test_another_tokenizer_by_path(tmp_path: Path):
    from transformers import BertTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "left", "kidney"]
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(words))
    BertTokenizerFast(vocab_file=str(vocabulary), vocab=str(vocabulary)).save_pretrained(tmp_path)
    tokenizer = PromptTokenizer(path=tmp_path, context=5)
    assert tokenizer.encode("Left  kidney") == (2, 5, 6, 3)
    with pytest.raises(PromptError, match="longer than the 5 tokens"):
        tokenizer.encode("left kidney left kidney")


def test_no_tokenizer_there(tmp_path: Path):
    with pytest.raises(CheckpointError, match="no transformers tokenizer at"):
        PromptTokenizer(path=tmp_path / "nowhere")
