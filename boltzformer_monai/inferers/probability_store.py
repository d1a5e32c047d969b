"""Probabilities of a volume's slices, compressed: in memory up to a limit, then in a temporary file."""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Sequence

import numpy as np

from boltzformer_monai.errors import StorageError, why

IN_MEMORY = 64 * 2**20
"""Bytes kept in memory before the store moves to a temporary file, which has no name and so cannot be left behind."""


class ProbabilityStore:
    """For each prompt, plane and slice: an image of probabilities and the presence of the object.

    Slices may be put in any order and again; the last one counts. An empty image costs nothing.

    Args:
        prompts: number of prompts.
        shapes: for each plane its ``(N, H, W)``.
    """

    def __init__(self, prompts: int, shapes: Sequence[tuple[int, int, int]]) -> None:
        self.shapes = tuple(shapes)
        # Arrays, not dictionaries: prompts × slices entries of a few bytes each.
        self._offset = [np.zeros((prompts, shape[0]), np.int64) for shape in shapes]
        self._length = [np.zeros((prompts, shape[0]), np.int64) for shape in shapes]
        self._presence = [np.full((prompts, shape[0]), np.nan, np.float32) for shape in shapes]
        self._end = 0
        self._file = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY)  # noqa: SIM115 (close() closes it)

    def put(self, prompt: int, plane: int, index: int, values: np.ndarray, presence: float | None = None) -> None:
        """Keep ``values`` (H, W) uint8 and the presence probability of a slice.

        Raises:
            StorageError: the temporary folder is full.
        """
        self._presence[plane][prompt, index] = np.nan if presence is None else presence
        packed = zlib.compress(values.tobytes(), 1) if values.any() else b""
        try:
            self._file.seek(self._end)
            self._file.write(packed)
        except OSError as error:
            msg = f"cannot store probabilities in {tempfile.gettempdir()} ({why(error)}); free space or set TMPDIR"
            raise StorageError(msg) from error
        self._offset[plane][prompt, index], self._length[plane][prompt, index] = self._end, len(packed)
        self._end += len(packed)

    def get(self, prompt: int, plane: int, index: int) -> np.ndarray:
        """The probabilities (H, W) uint8 of a slice, read-only; zeros where none was put."""
        shape = self.shapes[plane][1:]
        length = int(self._length[plane][prompt, index])
        if not length:
            return np.zeros(shape, np.uint8)
        self._file.seek(int(self._offset[plane][prompt, index]))
        return np.frombuffer(zlib.decompress(self._file.read(length)), np.uint8).reshape(shape)

    def filled(self, prompt: int, plane: int) -> np.ndarray:
        """Boolean ``(N,)``: which slices are not empty."""
        return self._length[plane][prompt] > 0

    def presence(self, prompt: int, plane: int) -> np.ndarray | None:
        """Presence probabilities ``(N,)`` float32 of a prompt in a plane; ``None`` from a network without the head."""
        found = self._presence[plane][prompt]
        return None if np.isnan(found).any() else found

    def close(self) -> None:
        """Give memory and disk back."""
        self._file.close()
