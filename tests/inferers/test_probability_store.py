from __future__ import annotations

import numpy as np
import pytest

from boltzformer_monai.errors import StorageError
from boltzformer_monai.inferers import probability_store as module
from boltzformer_monai.inferers.probability_store import ProbabilityStore


def test_what_was_put_comes_back_from_memory_and_from_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IN_MEMORY", 2000)
    rng = np.random.default_rng(0)
    store = ProbabilityStore(2, [(3, 20, 30), (20, 3, 30)])
    pictures = {
        (p, plane, n): rng.integers(0, 256, shape[1:], np.uint8)
        for plane, shape in enumerate(store.shapes)
        for p in range(2)
        for n in range(1, shape[0])
    }
    for key, picture in pictures.items():
        store.put(*key, picture, 0.25)
    store.put(1, 0, 2, pictures[1, 0, 1], 0.75)  # again: the last one counts
    pictures[1, 0, 2] = pictures[1, 0, 1]
    for key, picture in pictures.items():
        np.testing.assert_array_equal(store.get(*key), picture)
    assert not store.get(0, 0, 0).any()
    assert store.filled(0, 0).tolist() == [False, True, True]
    assert store.presence(1, 0) is None  # its first slice was never put
    store.put(1, 0, 0, np.zeros((20, 30), np.uint8), 0.5)
    assert store.presence(1, 0).tolist() == [0.5, 0.25, 0.75]
    assert store.filled(1, 0).tolist() == [False, True, True]
    store.close()


def test_a_full_disk_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    store = ProbabilityStore(1, [(1, 2, 2)])

    class Full:
        def seek(self, position: int) -> None: ...

        def write(self, content: bytes) -> None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "_file", Full())
    with pytest.raises(StorageError, match="No space left on device.*TMPDIR"):
        store.put(0, 0, 0, np.ones((2, 2), np.uint8))
