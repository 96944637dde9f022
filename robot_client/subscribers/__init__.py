"""Who is told what happens in an episode: recorder, timing log, console."""

from __future__ import annotations

from typing import TYPE_CHECKING, Optional, Protocol

if TYPE_CHECKING:
    from robot_client.records import EpisodeInfo, EpisodeReport, TickRecord
    from robot_client.robot import RobotObservation


class Subscriber(Protocol):
    """Told of every tick, in the control thread: hand over and return, do work elsewhere.

    One that raises is told nothing more in that episode but its end; the report's events say so.
    """

    needs_observations: bool
    """Whether the robot must be observed at every tick, or only when the policy wants an observation."""

    def on_episode_start(self, info: EpisodeInfo) -> None:
        """Called before the first tick; may take its time."""
        ...

    def on_step(self, record: TickRecord, observation: Optional[RobotObservation]) -> None:
        """Called after each command.

        Args:
            observation: what was seen before the command; None where nobody looked.
        """
        ...

    def on_episode_end(self, report: EpisodeReport) -> None:
        """Called after the last tick, whatever ended the episode; may take its time."""
        ...
