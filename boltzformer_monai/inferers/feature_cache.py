"""Cache of image features: another prompt on the same scan costs its decoding only."""

from __future__ import annotations

import hashlib
import itertools
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from boltzformer_monai.errors import ConfigError
from boltzformer_monai.inferers.encoder import Encode, Encoder, Pictures
from boltzformer_monai.networks import BoltzFormer, ImageFeatures


@dataclass
class _Entry:
    features: ImageFeatures
    bytes: int
    volume: int


class FeatureCache:
    """Least recently used features, within a limit; thread-safe.

    Keys: hash of the windowed slices, how they are fitted, and the network with its precision and the number of
    changes of its weights. So cached features equal new ones to the byte.

    Of a volume that does not fit, the first slices are kept, so that its slices do not evict one another.

    Args:
        limit: bytes; 0 caches nothing.

    Attributes:
        hits: slices found so far.
        misses: slices encoded so far.

    Raises:
        ConfigError: a negative limit.
    """

    def __init__(self, limit: int) -> None:
        if limit < 0:
            raise ConfigError(f"the bytes of the feature cache must be 0 or more, got {limit}")
        self.limit = limit
        self.hits = 0
        self.misses = 0
        self._entries: OrderedDict[tuple[Any, ...], _Entry] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()
        self._volumes = itertools.count(1)
        self._networks: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()
        self._names = itertools.count(1)

    @property
    def bytes(self) -> int:
        """Current size."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._entries)

    def clear(self) -> None:
        """Drop all features."""
        with self._lock:
            self._entries.clear()
            self._bytes = 0

    def encoder(self, network: BoltzFormer, encode: Encode | None = None) -> Encoder:
        """A caching encoder for one volume; ``encode`` defaults to ``network.encode_image``."""
        return _CachingEncoder(self, encode or network.encode_image, self._identity(network), next(self._volumes))

    def get(self, key: tuple[Any, ...], count: int, volume: int) -> ImageFeatures | None:
        """Cached features of ``count`` slices, or None; marks them as used by this volume."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                self.misses += count
                return None
            self.hits += count
            self._entries.move_to_end(key)
            entry.volume = volume
            return entry.features

    def keep(self, key: tuple[Any, ...], features: ImageFeatures, volume: int) -> None:
        """Cache features, unless that would evict slices of the same volume."""
        entry = _Entry(features, features.nbytes, volume)
        with self._lock:
            if key in self._entries or entry.bytes > self.limit:
                return
            while self._bytes + entry.bytes > self.limit:
                oldest = next(iter(self._entries))
                if self._entries[oldest].volume == entry.volume:
                    return  # only this volume is left
                self._bytes -= self._entries.pop(oldest).bytes
            self._entries[key] = entry
            self._bytes += entry.bytes

    def _identity(self, network: BoltzFormer) -> tuple[Any, ...]:
        with self._lock:
            if network not in self._networks:
                self._networks[network] = next(self._names)
            name = self._networks[network]
        # Every in-place change of a tensor (training, loading weights) increments its version.
        weights = itertools.chain(network.parameters(), network.buffers())
        changes = sum(tensor._version for tensor in weights if not tensor.is_inference())
        return name, network.precision, network.training, changes


class _CachingEncoder(Encoder):
    def __init__(self, cache: FeatureCache, encode: Encode, network: tuple[Any, ...], volume: int) -> None:
        super().__init__(encode)
        self.cache, self.network, self.volume = cache, network, volume

    def __call__(self, images: Tensor) -> ImageFeatures:
        return self._cached(_fingerprint(images), len(images), lambda: images)

    def fitted(self, pictures: Pictures, fit: Callable[[Tensor], Tensor], name: object) -> ImageFeatures:
        key = (*pictures.digest, name, str(pictures.device))
        return self._cached(key, len(pictures.pixels), lambda: fit(pictures.tensor()))

    def _cached(self, key: tuple[Any, ...], count: int, images: Callable[[], Tensor]) -> ImageFeatures:
        key = (*self.network, *key)
        features = self.cache.get(key, count, self.volume)
        if features is None:
            features = self.encode(images())
            self.cache.keep(key, features, self.volume)
        return features


def _fingerprint(images: Tensor) -> tuple[Any, ...]:
    array = np.ascontiguousarray(images.detach().cpu().numpy())
    digest = hashlib.blake2b(array.tobytes(), digest_size=20).digest()
    return digest, tuple(images.shape), str(images.dtype), str(images.device)
