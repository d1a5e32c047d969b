from __future__ import annotations

import torch

from boltzformer_monai.inferers.prompt_groups import TOGETHER, prompt_groups
from boltzformer_monai.transforms import PromptTokenizer

LONG = "the pancreas of the patient that lies in the scanner and has had a long day already today"


def test_a_prompt_is_computed_in_the_same_shape_whoever_else_is_asked(tokenizer: PromptTokenizer) -> None:
    prompts = ["liver", LONG, "spleen", *(f"lymph node {i}" for i in range(9))]
    alone = {p: prompt_groups(tokenizer([p]), [0], context=77)[0].tokens for p in prompts}
    groups = prompt_groups(tokenizer(prompts), range(len(prompts)), context=77)
    assert sorted(member for group in groups for member in group.members) == list(range(12))
    assert len(groups) == 3  # eleven short ones in two, the long one
    for group in groups:
        for row, member in enumerate(group.members):
            assert group.tokens.shape == alone[prompts[member]].shape
            assert torch.equal(group.tokens[row], alone[prompts[member]][0])


def test_missing_prompts_are_repeated_ones_and_no_context_is_exceeded(tokenizer: PromptTokenizer) -> None:
    (group,) = prompt_groups(tokenizer(["liver"]), [0], context=77)
    assert group.tokens.shape == (TOGETHER, 16)
    assert (group.tokens == group.tokens[0]).all()
    (group,) = prompt_groups(tokenizer(["liver " * 70]), [0], context=77)
    assert group.tokens.shape == (TOGETHER, 77)
