"""Who pays: the environment, or a served reward model that sees its frames."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from clients.errors import RoboserveError
from clients.reward import RewardClient
from clients.reward_env import RewardEnv
from clients.reward_shaping import RewardShape

if TYPE_CHECKING:
    import gymnasium

ENV, SERVED = "env", "served:"


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """Where rewards come from.

    Attributes:
        source: "env", the environment's own; "served:NAME" or "served:ADDRESS", a reward model's, and nothing else's.
        server: where a model that is given by its name answers, "host:port".
        shape: what a step is paid for what the model says: its progress, a difference, a potential, success.
        every: show the model every n-th step.
        lag: most steps whose reward may be under way while play and learning go on; 0 waits for each.
        patience_s: longest wait for a lost server.
    """

    source: str = ENV
    server: str = "127.0.0.1:8000"
    shape: RewardShape = field(default_factory=RewardShape)
    every: int = 1
    lag: int = 32
    patience_s: float = 120.0

    def __post_init__(self) -> None:
        named = self.source.startswith(SERVED) and self.source.removeprefix(SERVED).strip()
        if self.source != ENV and not named:
            raise ValueError(f"reward: {self.source!r}, must be env, served:NAME or served:ADDRESS")

    @property
    def served(self) -> bool:
        """Whether a model pays."""
        return self.source != ENV

    @property
    def identity(self) -> dict[str, Any]:
        """What of it makes a run what it is; where the model answers may change on the way."""
        return (
            {"reward": "served", "shape": asdict(self.shape), "every": self.every} if self.served else {"reward": ENV}
        )

    def connect(self) -> RewardClient:
        """Return a client of the model.

        Raises:
            RoboserveError: it cannot be reached, or is none.
        """
        name = self.source.removeprefix(SERVED)
        if "://" in name or ":" in name:
            return RewardClient(name)
        return RewardClient(self.server, model=name)

    def wrap(self, env: gymnasium.Env[Any, Any], client: RewardClient) -> RewardEnv:
        """Return the environment, paid by the model for what its `instruction` says.

        Raises:
            RoboserveError: `invalid_request` where the environment has no words for what it wants.
        """
        instruction = getattr(env.unwrapped, "instruction", None)
        if not instruction:
            raise RoboserveError("invalid_request", "task: has no instruction, which a reward model needs")
        return RewardEnv(
            env,
            client,
            instruction,
            shape=self.shape,
            every=self.every,
            lag=self.lag,
            patience_s=self.patience_s,
        )
