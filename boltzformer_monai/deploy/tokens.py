"""Prompts as tokens without this package: a table of known prompts, and a tokenizer for any text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from boltzformer_monai.data.prompts import normalise_prompt, prompts_for, vocabulary_names
from boltzformer_monai.errors import CheckpointError
from boltzformer_monai.modality import stored_modality
from boltzformer_monai.transforms.tokenizer import PromptTokenizer

__all__ = ["prompt_table", "tokenizer_json"]

# As CLIP splits a text before it merges letters: clitics, words, single digits, runs of other signs.
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_PROBES = ("left kidney in abdominal CT", "the patient's 2 lesions (T2-FLAIR, 3.5 mm)", "Nódulo  pulmonar")


def prompt_table(
    data: Mapping[str, Any], tokenizer: PromptTokenizer, prompts: Sequence[str] = ()
) -> dict[str, list[int]]:
    """Prompt in lower case → tokens: the training's prompts, or the vocabulary's names where no targets are stated.

    Args:
        data: a checkpoint's description of its training slices.
        tokenizer: of the network.
        prompts: further ones.

    Raises:
        PromptError: a prompt is empty, or longer than the text encoder reads.
    """
    texts = list(prompts)
    for entry in data.get("targets", ()):
        texts.append(entry["target"])
        texts += prompts_for(entry["target"], site=entry["site"], modality=stored_modality(entry["modality"]))
    if not data.get("targets"):
        texts += sorted(set(vocabulary_names().values()))
    return {text: list(tokenizer.encode(text)) for text in dict.fromkeys(map(normalise_prompt, texts))}


def tokenizer_json(tokenizer: PromptTokenizer) -> str | None:
    """The tokenizer as a file of Hugging Face's ``tokenizers``; ``None`` for a text model whose tokenizer has no such.

    Raises:
        CheckpointError: the file would give other tokens than the tokenizer.
    """
    made = _clip() if tokenizer.path is None else _of_transformers(tokenizer.path)
    if made is None:
        return None
    for text in _PROBES:
        if tuple(made.encode(normalise_prompt(text)).ids) != tokenizer.encode(text):
            msg = f"the tokenizer cannot be exported: its file gives other tokens for {text!r}; update tokenizers"
            raise CheckpointError(msg)
    return str(made.to_str())


def _clip() -> Any:
    """CLIP's byte-pair encoding, of open_clip's vocabulary."""
    from open_clip.tokenizer import SimpleTokenizer
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    clip: Any = SimpleTokenizer()
    model = models.BPE(clip.encoder, list(clip.bpe_ranks), continuing_subword_prefix="", end_of_word_suffix="</w>")
    made = Tokenizer(model)
    made.normalizer = normalizers.Sequence([normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
    words = pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True)
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([words, letters])
    start, end = clip.all_special_ids
    ends = [("<start_of_text>", start), ("<end_of_text>", end)]
    single = f"{ends[0][0]} $A {ends[1][0]}"
    made.post_processor = processors.TemplateProcessing(single=single, special_tokens=ends)
    return made


def _of_transformers(path: str) -> Any:
    from transformers import AutoTokenizer

    return getattr(AutoTokenizer.from_pretrained(path, local_files_only=True), "backend_tokenizer", None)
