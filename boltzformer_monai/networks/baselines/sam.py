"""SAM's mask decoder (Kirillov et al., 2023), as transformers has it, with text in the place of points and boxes.

The paper says no more of this baseline than that it shares backbone and text encoder. What was decided here, for SAM
and SAM 2 alike, stands in docs/explanation/baselines.md: it reads the visual features V of stride 16 in a width of its
own, with our position encoding; each text token is a sparse prompt token; there is no dense prompt; one mask token.
Its masks have stride 4 and are doubled without learning, and a learned
``mask_bias`` is added where the network has one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from boltzformer_monai.errors import ConfigError
from boltzformer_monai.networks.baselines.settings import SAMPLING, check_least, refuse_settings
from boltzformer_monai.networks.baselines.text import PromptTokens
from boltzformer_monai.networks.config import NetworkConfig
from boltzformer_monai.networks.interfaces import Decoded, ImageFeatures, TextFeatures
from boltzformer_monai.networks.pigma import double
from boltzformer_monai.networks.position import sine_position_encoding
from boltzformer_monai.networks.registries import register_decoder
from boltzformer_monai.networks.sampling import Randomness

SAM = "sam"
MOST_TOKENS = 512
"""Tokens that every prompt can be padded to."""


@register_decoder(SAM)
class SamDecoder(nn.Module):
    """Two-way transformer between prompt tokens and image tokens, then up-sampling by transposed convolutions.

    Every pair of image and prompt has image tokens of its own, which change from block to block.

    With ``config.presence`` the quality token, with which SAM predicts the IoU of its mask, says whether the object is
    in the slice. Otherwise nothing trains it.

    Args:
        config: of the network.
        width: channels (SAM: 256), a multiple of 8 and of twice the heads.
        heads: attention heads; attention to and from the image is half as wide.
        layers: two-way blocks.
        hidden: width of their feed-forward layers (SAM: 2048).
        prompt_tokens: prompts are padded to multiples of it, at most 512; see
            :class:`~boltzformer_monai.networks.baselines.text.PromptTokens`.

    Attributes:
        leaves_features: whether there are features of the image that no gradient reaches: it reads those of stride 16.

    Raises:
        ConfigError: a size is not possible, or the network has settings that this decoder would ignore.
    """

    name: ClassVar[str] = SAM
    leaves_features: ClassVar[bool] = True
    mask_decoder: Any

    def __init__(
        self,
        config: NetworkConfig,
        *,
        width: int = 128,
        heads: int = 8,
        layers: int = 2,
        hidden: int = 256,
        prompt_tokens: int = 16,
    ) -> None:
        super().__init__()
        ignored = (*SAMPLING, "threshold", "level_logits", "text_prior", "pigma_channels", "pigma_correction")
        refuse_settings(config, ignored, decoder=self.name)
        sizes = {"width": width, "heads": heads, "layers": layers, "hidden": hidden, "prompt_tokens": prompt_tokens}
        check_least(sizes, decoder=self.name)
        if width % 8 or width % (2 * heads):
            limits = f"a multiple of 8 and of twice its {heads} heads"
            raise ConfigError(f"width of the decoder {self.name!r} must be {limits}, got {width}")
        if prompt_tokens > MOST_TOKENS:  # no weight has this size, so a file could claim any
            msg = f"prompt_tokens of the decoder {self.name!r} must be at most {MOST_TOKENS}, got {prompt_tokens}"
            raise ConfigError(msg)
        self.text = PromptTokens(dim=config.dim, width=width, slots=prompt_tokens)
        self.embedding = nn.Conv2d(config.dim, width, 1)
        self.mask_decoder = self.library_decoder(
            config.dim, hidden_size=width, num_attention_heads=heads, num_hidden_layers=layers, mlp_dim=hidden
        )
        self.mask_bias = None if config.mask_bias is None else nn.Parameter(torch.tensor(float(config.mask_bias)))
        self.has_presence = config.presence
        for head in self.untrained():
            head.requires_grad_(False)

    def library_decoder(self, dim: int, **sizes: Any) -> nn.Module:
        """The decoder of transformers, at random; one mask token, as a text is not ambiguous like a point."""
        from transformers.models.sam.configuration_sam import SamMaskDecoderConfig
        from transformers.models.sam.modeling_sam import SamMaskDecoder

        config = SamMaskDecoderConfig(num_multimask_outputs=0, iou_head_hidden_dim=sizes["hidden_size"], **sizes)
        config._attn_implementation = "sdpa"
        return SamMaskDecoder(config)

    def train(self, mode: bool = True) -> SamDecoder:
        """As in PyTorch; the library's decoder, which has no dropout, stays in evaluation mode.

        In training mode that of transformers 4.54 to 4.56.0 asks for a rate of dropout that it does not have.
        """
        super().train(mode)
        self.mask_decoder.eval()
        return self

    @property
    def presence(self) -> nn.Module | None:
        """The presence head, ``None`` where the network has none."""
        return self.presence_head() if self.has_presence else None

    def presence_head(self) -> nn.Module:
        """What of the library's decoder gives presence logits."""
        return self.mask_decoder.iou_prediction_head  # type: ignore[no-any-return]

    def untrained(self) -> Sequence[nn.Module]:
        """Heads whose output has no loss."""
        return () if self.has_presence else (self.presence_head(),)

    def forward(self, image: ImageFeatures, text: TextFeatures, *, generator: Randomness = None) -> Decoded:
        """Decode P prompts on each of B images; see :class:`~boltzformer_monai.networks.interfaces.Decoder`."""
        features, shape = self.features(image), text.valid.shape[:2]
        if text.tokens.shape[2] <= self.text.slots:  # so is every prompt: nothing needs to be read from the device
            pairs = [each[:, None].expand(-1, shape[1], -1, -1, -1).flatten(0, 1) for each in features]
            masks, presence = self.predict(pairs, self.text(text, self.text.slots).flatten(0, 1))
        else:
            masks, presence = self._predict_by_length(features, text)
        logits = double(masks.unflatten(0, shape))
        if self.mask_bias is not None:
            logits = logits + self.mask_bias
        return Decoded(logits, presence.unflatten(0, shape) if self.has_presence else None)

    def features(self, image: ImageFeatures) -> tuple[Tensor, ...]:
        """What the prompts of an image share: ``(B, width, H/16, W/16)``."""
        return (self.embedding(image.levels[1]),)

    def predict(self, features: Sequence[Tensor], tokens: Tensor) -> tuple[Tensor, Tensor]:
        """N pairs, features and prompts ``(N, L, width)`` → mask ``(N, H/4, W/4)`` and presence logits ``(N,)``."""
        masks, quality = self.mask_decoder(**self.inputs(features[0], tokens))[:2]
        return masks[:, 0, 0], quality[:, 0, 0]

    def inputs(self, embedding: Tensor, tokens: Tensor) -> dict[str, Tensor | bool]:
        """Arguments of the library's decoder for one mask of each pair, each an image with one prompt."""
        position = sine_position_encoding(
            embedding.shape[2], embedding.shape[3], embedding.shape[1], device=embedding.device
        )
        return {
            "image_embeddings": embedding,
            "image_positional_embeddings": position.expand(embedding.shape[0], -1, -1, -1),
            "sparse_prompt_embeddings": tokens[:, None],
            "dense_prompt_embeddings": embedding.new_zeros(()),
            "multimask_output": False,
        }

    def _predict_by_length(self, features: Sequence[Tensor], text: TextFeatures) -> tuple[Tensor, Tensor]:
        """As :meth:`predict` for all pairs, one padded length after another; which ones there are is data."""
        lengths = self.text.lengths(text.valid)
        order, found = [], []
        for length in lengths.unique().tolist():
            images, prompts = (lengths == length).nonzero(as_tuple=True)
            own = TextFeatures(*(part[images, prompts][:, None] for part in text))
            found.append(self.predict([each[images] for each in features], self.text(own, length)[:, 0]))
            order.append(images * lengths.shape[1] + prompts)
        back = torch.cat(order).argsort()
        masks, presence = (torch.cat(parts)[back] for parts in zip(*found, strict=True))
        return masks, presence
