"""Checks of the baselines' settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from boltzformer_monai.errors import ConfigError
from boltzformer_monai.networks.config import NetworkConfig

SAMPLING = ("policy", "policy_settings", "base_temperature", "sample_ratio", "exact")
"""Settings of the network that say which patches queries attend to."""


def refuse_settings(config: NetworkConfig, names: Sequence[str], *, decoder: str) -> None:
    """Refuse settings of the network that a decoder would ignore: its results would be taken for an ablation's.

    Raises:
        ConfigError: one of them is not as by default.
    """
    for name in names:
        value = getattr(config, name)
        if value != getattr(NetworkConfig, name, {}):  # the class holds the defaults, but not of mappings
            raise ConfigError(f"the decoder {decoder!r} has no {name}, got {value!r}; leave it out")


def check_least(settings: Mapping[str, int], *, decoder: str) -> None:
    """Raises :class:`~boltzformer_monai.errors.ConfigError` for a setting below 1."""
    for name, value in settings.items():
        if value < 1:
            raise ConfigError(f"{name} of the decoder {decoder!r} must be at least 1, got {value}")
