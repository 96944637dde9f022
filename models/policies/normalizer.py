"""How states and actions are brought to the scale that a network reads and writes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Normalizer:
    """Model space is (value - mean) / std, dimension by dimension; std is above 0."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not all(math.isfinite(value) for value in (*self.mean, *self.std)):
            raise ValueError("normalization: mean and std must be finite and of one length")
        if min(self.std, default=1.0) <= 0:
            raise ValueError("normalization: every std must be above 0")

    @classmethod
    def of(cls, values: NDArray[np.float32]) -> Normalizer:
        """Return that of values (N, size); 0.001 is added to every std, for what hardly varies."""
        mean, std = values.mean(axis=0), values.std(axis=0) + 1e-3
        return cls(mean=tuple(float(value) for value in mean), std=tuple(float(value) for value in std))

    def normalize(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return values (..., size) in model space, float32."""
        scaled: NDArray[np.float32] = ((values - np.asarray(self.mean)) / np.asarray(self.std)).astype(np.float32)
        return scaled

    def restore(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return model-space values (..., size) in physical units, float32."""
        restored: NDArray[np.float32] = (values * np.asarray(self.std) + np.asarray(self.mean)).astype(np.float32)
        return restored
