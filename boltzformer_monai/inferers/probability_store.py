"""Compressed probabilities of a volume's slices, in memory up to a limit, then in a temporary file."""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Sequence

import numpy as np

from boltzformer_monai.errors import StorageError, why

IN_MEMORY = 64 * 2**20
"""Bytes in memory before the store moves to an unnamed temporary file, which the system removes."""


class ProbabilityStore:
    """For each prompt, plane and slice: probabilities and presence. An empty slice takes no space.

    Args:
        prompts: number of prompts.
        shapes: ``(N, H, W)`` of each plane.
    """

    def __init__(self, prompts: int, shapes: Sequence[tuple[int, int, int]]) -> None:
        self.shapes = tuple(shapes)
        # Arrays, not dictionaries: prompts × slices entries of a few bytes each.
        self._offset = [np.zeros((prompts, shape[0]), np.int64) for shape in shapes]
        self._length = [np.zeros((prompts, shape[0]), np.int64) for shape in shapes]
        self._presence = [np.full((prompts, shape[0]), np.nan, np.float32) for shape in shapes]
        self._dropped = [np.zeros((prompts, shape[0]), np.bool_) for shape in shapes]
        self._winner: dict[tuple[int, int], tuple[int, int]] = {}  # (plane, slice) → place and length
        self._end = 0
        self._file = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY)  # noqa: SIM115 (close() closes it)

    def put(
        self,
        prompt: int,
        plane: int,
        index: int,
        values: np.ndarray,
        presence: float | None = None,
        *,
        kept: bool = True,
    ) -> None:
        """Keep ``values`` (H, W) uint8 and the presence probability of a slice.

        Args:
            prompt: its number.
            plane: its number.
            index: of the slice.
            values: probabilities.
            presence: of the object in the slice.
            kept: False: the slice has no mask, whatever the probabilities are.

        Raises:
            StorageError: the temporary folder is full.
        """
        self._presence[plane][prompt, index] = np.nan if presence is None else presence
        self._dropped[plane][prompt, index] = not kept
        self._offset[plane][prompt, index], self._length[plane][prompt, index] = self._append(values)

    def put_winner(self, plane: int, index: int, winner: np.ndarray) -> None:
        """Keep whose each pixel of a slice is, where that was decided by more than the 8 bits that are kept.

        Args:
            plane: its number.
            index: of the slice.
            winner: (H, W) uint16, 1 for the first prompt, 0 for none.

        Raises:
            StorageError: the temporary folder is full.
        """
        self._winner[plane, index] = self._append(winner)

    def _append(self, values: np.ndarray) -> tuple[int, int]:
        """Place and length of an image in the file; an empty one costs nothing."""
        packed = zlib.compress(values.tobytes(), 1) if values.any() else b""
        try:
            self._file.seek(self._end)
            self._file.write(packed)
        except OSError as error:
            msg = f"cannot store probabilities in {tempfile.gettempdir()} ({why(error)}); free space or set TMPDIR"
            raise StorageError(msg) from error
        self._end += len(packed)
        return self._end - len(packed), len(packed)

    def get(self, prompt: int, plane: int, index: int) -> np.ndarray:
        """The probabilities (H, W) uint8 of a slice, read-only; zeros where none was put."""
        place = int(self._offset[plane][prompt, index]), int(self._length[plane][prompt, index])
        return self._read(place, plane, np.uint8)

    def winner(self, plane: int, index: int) -> np.ndarray | None:
        """What :meth:`put_winner` was given, read-only; ``None`` where nothing was."""
        place = self._winner.get((plane, index))
        return None if place is None else self._read(place, plane, np.uint16)

    def _read(self, place: tuple[int, int], plane: int, dtype: type) -> np.ndarray:
        offset, length = place
        shape = self.shapes[plane][1:]
        if not length:
            return np.zeros(shape, dtype)
        self._file.seek(offset)
        return np.frombuffer(zlib.decompress(self._file.read(length)), dtype).reshape(shape)

    def filled(self, prompt: int, plane: int) -> np.ndarray:
        """Boolean ``(N,)``: slices that are not empty."""
        return self._length[plane][prompt] > 0

    def dropped(self, prompt: int, plane: int) -> np.ndarray:
        """Boolean ``(N,)``: which slices have no mask of the prompt, whatever the probabilities are."""
        return self._dropped[plane][prompt]

    def presence(self, prompt: int, plane: int) -> np.ndarray | None:
        """Presence probabilities ``(N,)`` float32 of a prompt in a plane; ``None`` without presence head."""
        found = self._presence[plane][prompt]
        return None if np.isnan(found).any() else found

    def close(self) -> None:
        """Free memory and disk."""
        self._file.close()
