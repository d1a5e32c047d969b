"""Tokens without this package are those of its tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boltzformer_monai.data.prompts import prompts_for, vocabulary_names
from boltzformer_monai.deploy.tokens import prompt_table, tokenizer_json
from boltzformer_monai.errors import PromptError
from boltzformer_monai.transforms import PromptTokenizer
from tests.models.conftest import DATA
from tests.sizes import count

tokenizers = pytest.importorskip("tokenizers")
OURS = PromptTokenizer()


@pytest.fixture(scope="module")
def theirs() -> object:
    return tokenizers.Tokenizer.from_str(tokenizer_json(OURS))


def test_every_name_of_the_vocabulary(theirs: tokenizers.Tokenizer) -> None:
    names = sorted(vocabulary_names())
    assert len(names) > 100
    for name in names:
        assert tuple(theirs.encode(name).ids) == OURS.encode(name), name


@settings(max_examples=count(200, thorough=5000), deadline=None)
@given(st.text(st.sampled_from([*map(chr, range(32, 126)), *"éèüöäßñçøÅÉ²µ×–"]), min_size=1, max_size=40))
def test_any_text(theirs: tokenizers.Tokenizer, text: str) -> None:
    # open_clip also mends what was decoded wrongly, and reads entities of HTML.
    if text.strip() and "&" not in text:
        assert tuple(theirs.encode(" ".join(text.split())).ids) == OURS.encode(text)


def test_the_table_holds_the_prompts_of_the_training_and_those_asked_for(small_onnx: Path) -> None:
    table = json.loads((small_onnx / "prompts.json").read_text(encoding="utf-8"))
    assert table == prompt_table(DATA, OURS, ["The  Spleen"])
    for prompt in ("lung nodule", "the spleen", prompts_for("lung nodule", site="chest", modality="CT")[0].lower()):
        assert tuple(table[prompt]) == OURS.encode(prompt)


def test_without_targets_the_table_holds_the_vocabulary() -> None:
    table = prompt_table({}, OURS)
    assert {"liver", "pancreas", "lung nodule"} <= set(table)
    with pytest.raises(PromptError, match="the prompt is empty"):
        prompt_table({}, OURS, [" "])
