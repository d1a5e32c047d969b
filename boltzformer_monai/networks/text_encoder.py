"""Text encoders on transformers: the paper's CLIP/UniCL-style encoder, or any text model from a local folder.

Tokens are int64 ids, padded with ``PADDING`` (−1) for every tokenizer; no separate padding mask is needed.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModel, CLIPTextConfig, CLIPTextModel

from boltzformer_monai.errors import CheckpointError, ConfigError, PromptError

PADDING = -1


class TextEncoder(nn.Module):
    """A transformers text model, with a linear projection of its hidden states to d channels.

    Args:
        model: any transformers text model that takes ``input_ids`` and ``attention_mask``.
        width: its hidden size.
        dim: d.
        context: longest prompt in tokens.
    """

    def __init__(self, model: nn.Module, *, width: int, dim: int, context: int) -> None:
        super().__init__()
        self.model = model
        self.lang_proj = nn.Linear(width, dim, bias=False)
        nn.init.normal_(self.lang_proj.weight, std=width**-0.5)
        self.context = context

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Encode prompts.

        Args:
            tokens: ``(B, P, N_T)`` int64, −1 = padding.

        Returns:
            Token embeddings ``(B, P, N_T, d)``, zero at padding, and validity ``(B, P, N_T)`` boolean.

        Raises:
            PromptError: the prompts are longer than the context.
        """
        batch, prompts, length = tokens.shape
        if length > self.context:
            raise PromptError(f"the prompt has {length} tokens; this text encoder reads at most {self.context}")
        flat = tokens.flatten(0, 1)
        valid = flat != PADDING
        # A prompt of padding only, as batches have, would be an all-masked softmax row (NaN): unmask its first token.
        mask = valid | (torch.arange(length, device=tokens.device) == 0)
        hidden = self.model(input_ids=flat.clamp_min(0), attention_mask=mask.long()).last_hidden_state
        embedded = self.lang_proj(hidden) * valid.unsqueeze(-1)
        return embedded.view(batch, prompts, length, -1), valid.view(batch, prompts, length)


def clip_text_encoder(
    *,
    dim: int,
    width: int = 512,
    layers: int = 12,
    heads: int = 8,
    context: int = 77,
    vocabulary: int = 49408,
    activation: str = "quick_gelu",
    norm_eps: float = 1e-12,
) -> TextEncoder:
    """UniCL's text encoder: causal pre-norm transformer over CLIP's BPE vocabulary (Appendix A.2)."""
    if width % heads:
        raise ConfigError(f"the text encoder's width {width} is not divisible by its heads {heads}")
    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=context,
        hidden_act=activation,
        layer_norm_eps=norm_eps,
        attention_dropout=0.0,
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        pad_token_id=vocabulary - 1,
        projection_dim=width,
    )
    return TextEncoder(_text_transformer(CLIPTextModel(config)), width=width, dim=dim, context=context)


def pretrained_text_encoder(path: str | Path, *, dim: int) -> TextEncoder:
    """Load a transformers text model from a local folder (config.json and weights), without downloads.

    Raises:
        CheckpointError: the folder is missing or transformers cannot load it.
        ConfigError: the model's configuration has no hidden_size.
    """
    folder = Path(path)
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"no transformers text model at {folder}: config.json is missing")
    try:
        model = AutoModel.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        msg = f"transformers cannot load the text model at {folder}: {str(error).splitlines()[0]}"
        raise CheckpointError(msg) from error
    model = _text_transformer(model)
    width = getattr(model.config, "hidden_size", None)
    if width is None:
        raise ConfigError(f"the text model at {folder} has no hidden_size in its config.json")
    context = int(getattr(model.config, "max_position_embeddings", 512))
    return TextEncoder(model, width=int(width), dim=dim, context=context)


def _text_transformer(model: nn.Module) -> nn.Module:
    """Unwrap the text transformer: transformers 4 nests it one level deeper than 5, and weight names must agree."""
    return getattr(model, "text_model", model)
