"""Text prompts → token tensors, by CLIP's BPE vocabulary, which is part of open_clip."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from boltzformer_monai.data.prompts import normalise_prompt
from boltzformer_monai.errors import CheckpointError, PromptError

PADDING = -1
"""As the text encoder takes it (networks/text_encoder.py)."""
_Encode: TypeAlias = Callable[[str], list[int]]


class PromptTokenizer:
    """Prompts → ``(P, N_T)`` int64 token ids with −1 behind the prompt.

    Args:
        context: longest prompt in tokens, begin and end included (77).
        path: local folder of a transformers tokenizer, for networks with another text model; by default CLIP's BPE.

    Raises:
        CheckpointError: there is no tokenizer at ``path``.
    """

    def __init__(self, *, context: int = 77, path: str | Path | None = None) -> None:
        self.context = context
        self.path = None if path is None else str(path)
        self._encode = _clip_encoder() if path is None else _transformers_encoder(str(path))

    def __getstate__(self) -> dict[str, Any]:
        """Without the encoder, which cannot be pickled: data loader workers create their own."""
        return {"context": self.context, "path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Create the encoder."""
        self.__init__(**state)  # type: ignore[misc]

    def encode(self, prompt: str) -> tuple[int, ...]:
        """Token ids of one prompt.

        Raises:
            PromptError: the prompt is empty, or longer than the context.
        """
        text = normalise_prompt(prompt)
        # A token has at most a few dozen letters: skip the tokeniser for longer texts.
        ids = self._encode(text) if len(text) <= 64 * self.context else [0] * (self.context + 1)
        if len(ids) > self.context:
            short = text if len(text) <= 60 else f"{text[:57]}..."
            raise PromptError(f"prompt {short!r} is longer than the {self.context} tokens that the text encoder reads")
        return tuple(ids)

    def __call__(self, prompts: Sequence[str], *, length: int | None = None) -> Tensor:
        """``(P, N_T)`` int64; N_T is ``length`` or that of the longest prompt."""
        return pad_tokens([self.encode(prompt) for prompt in prompts], length=length)


def pad_tokens(encoded: Sequence[Sequence[int]], *, length: int | None = None) -> Tensor:
    """Token sequences → ``(P, N_T)`` int64, −1 behind each."""
    longest = max((len(ids) for ids in encoded), default=1)
    tokens = torch.full((len(encoded), max(longest, length or 0)), PADDING, dtype=torch.int64)
    for row, ids in zip(tokens, encoded, strict=True):
        row[: len(ids)] = torch.tensor(ids, dtype=torch.int64)
    return tokens


@functools.cache
def _clip_encoder() -> _Encode:
    from open_clip.tokenizer import SimpleTokenizer  # takes seconds to import, and only tokenising needs it

    tokenizer: Any = SimpleTokenizer()

    def encode(text: str) -> list[int]:
        return [tokenizer.sot_token_id, *tokenizer.encode(text), tokenizer.eot_token_id]

    return encode


def _transformers_encoder(path: str) -> _Encode:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"no transformers tokenizer at {path}: {str(error).splitlines()[0]}") from error
    return lambda text: list(tokenizer(text)["input_ids"])
