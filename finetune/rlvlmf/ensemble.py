"""The learned reward: an ensemble of networks that see one picture each, taught by pairs (Bradley and Terry 1952).

P(second better) = exp(r2) / (exp(r1) + exp(r2)); the loss is cross-entropy with the label as the class (Christiano et
al. 2017; RL-VLM-F, arXiv 2402.03681). The reward is the members' mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_CHANNELS, _KERNELS, _STRIDES = (16, 32, 64, 128), (5, 3, 3, 3), (3, 2, 2, 2)


class RewardCnn(nn.Module):
    """From a picture (B, 3, s, s), 0 to 1, to a reward (B,), -1 to 1.

    The tanh is the method's. It is also its limit: two rewards differ by 2 at most, so what is trained for long is
    driven into the bends, where pictures that are close to each other are told apart badly. The early stop helps.

    Raises:
        ValueError: pictures of this side leave nothing after the last convolution.
    """

    def __init__(self, image_size: int) -> None:
        super().__init__()
        side, before = image_size, 3
        layers: list[nn.Module] = []
        for channels, kernel, stride in zip(_CHANNELS, _KERNELS, _STRIDES, strict=True):
            layers += [nn.Conv2d(before, channels, kernel, stride), nn.LeakyReLU()]
            side, before = (side - kernel) // stride + 1, channels
        if side < 1:
            raise ValueError(f"image_size: {image_size}, too small for the network")
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(before * side * side, 1), nn.Tanh())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return one reward for each picture."""
        found: torch.Tensor = self.layers(images)
        return found.squeeze(-1)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What a session's training came to: passes made, and the members' mean accuracy in the last."""

    epochs: int
    accuracy: float


class RewardEnsemble:
    """The members and their one optimiser.

    Args:
        members: networks, each begun and shuffled by itself.
        rate: of Adam, over all members.
        batch: pairs of a step; `chunk`: pictures that are judged at once.
    """

    def __init__(
        self, image_size: int, *, members: int = 3, rate: float = 3e-4, batch: int = 64, chunk: int = 256, seed: int = 0
    ) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.members = nn.ModuleList(RewardCnn(image_size) for _ in range(members))
        self._optimiser = torch.optim.Adam(self.members.parameters(), lr=rate)
        self._random = np.random.default_rng([seed, 11])
        self._batch, self._chunk = batch, chunk

    def fit(
        self,
        images: NDArray[np.uint8],
        pairs: NDArray[np.int64],
        labels: NDArray[np.int64],
        *,
        epochs: int,
        stop: float = 0.97,
    ) -> Fit:
        """Train on all labelled pairs until the mean accuracy of a pass is over `stop`.

        Args:
            images: (n, s, s, 3); `pairs`: (m, 2) rows of it; `labels`: (m,), 0 or 1.

        Raises:
            ValueError: there is no pair, or a label is neither.
        """
        if not len(pairs) or not np.isin(labels, (0, 1)).all():
            raise ValueError("labels: must be 0 or 1, at least one")
        accuracy, epoch = 0.0, 0
        while epoch < epochs and accuracy <= stop:
            accuracy = self._epoch(images, pairs, labels)
            epoch += 1
        return Fit(epochs=epoch, accuracy=accuracy)

    def reward(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the mean reward (n,) of pictures (n, s, s, 3)."""
        each = self.rewards(images)
        return np.asarray(each.mean(axis=0), np.float32)

    def rewards(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return each member's reward, (members, n)."""
        found = np.empty((len(self.members), len(images)), np.float32)
        with torch.inference_mode():
            for start in range(0, len(images), self._chunk):
                batch = _tensor(images[start : start + self._chunk])
                for row, member in enumerate(self.members):
                    found[row, start : start + len(batch)] = member(batch).numpy()
        return found

    def _epoch(self, images: NDArray[np.uint8], pairs: NDArray[np.int64], labels: NDArray[np.int64]) -> float:
        orders = [self._random.permutation(len(pairs)) for _ in self.members]
        right = 0
        for start in range(0, len(pairs), self._batch):
            loss = torch.zeros(())
            for member, order in zip(self.members, orders, strict=True):
                rows = order[start : start + self._batch]
                logits = _logits(member, images, pairs[rows])
                target = torch.from_numpy(labels[rows])
                loss = loss + nn.functional.cross_entropy(logits, target)
                right += int((logits.argmax(dim=1) == target).sum())
            self._optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimiser.step()
        return right / (len(pairs) * len(self.members))


def _logits(member: nn.Module, images: NDArray[np.uint8], pairs: NDArray[np.int64]) -> torch.Tensor:
    both: torch.Tensor = member(_tensor(images[pairs.reshape(-1)]))
    return both.reshape(-1, 2)


def _tensor(images: NDArray[np.uint8] | Sequence[NDArray[np.uint8]]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255.0
