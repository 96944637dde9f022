"""Where a job computes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

CPU = torch.device("cpu")


def tensor(values: NDArray[np.float32], device: torch.device) -> Tensor:
    """Return numbers as a tensor there."""
    return torch.from_numpy(values).to(device)


def chosen(device: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """Return the device.

    Draws are made on the CPU whatever it is, so that a seed means the same everywhere, but for rounding.

    Raises:
        ValueError: CUDA was asked for and this machine has none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: 'cuda' was asked for and this machine has none")
    return torch.device("cuda") if device != "cpu" and torch.cuda.is_available() else CPU
