"""Each new best checkpoint of a run becomes a revision of a served policy, which robots get at their next reset."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from models.revisions import RevisionStore

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from models.revisions import Standing

PublishOption = Annotated[
    Path | None, typer.Option(help="Folder of a served policy's revisions, where each new best checkpoint becomes one.")
]
AlwaysOption = Annotated[bool, typer.Option("--publish-always", help="Whatever its success.")]
OverOption = Annotated[
    float | None,
    typer.Option(min=0.0, max=1.0, help="Success to beat where that of the policy that is served is not known."),
]
_KEPT = ("success", "success_low", "success_high", "episodes", "return", "env_steps")


class Publisher:
    """Publishes a checkpoint whose success beats, by the lower end of its interval, what is served already.

    To beat are the mean success of the current revision, and that of what this run has published.

    Args:
        folder: of the revisions. `job`: what the index calls the run.
        always: publish whatever the success. `over`: success to beat where none is known.

    Raises:
        ValueError: it would have nothing to compare with; told before a run and not after it.
    """

    def __init__(self, folder: Path, *, job: str, always: bool = False, over: float | None = None) -> None:
        self._store, self._job, self._always, self._over = RevisionStore(folder), job, always, over
        self._to_beat(self._store.read())

    def consider(self, make: Callable[[Path], object], metrics: Mapping[str, float]) -> str | None:
        """Publish if it is better; return the revision's id then.

        Args:
            make: writes the checkpoint into a folder.
            metrics: of its evaluation; `success_low` is needed unless all is published.
        """
        low = metrics.get("success_low", -math.inf)
        if not self._always and not low > self._to_beat(self._store.read()):
            return None

        def write(folder: Path) -> None:
            make(folder)

        kept = {name: metrics[name] for name in _KEPT if name in metrics}
        return self._store.publish(write, metrics=kept, job=self._job).id

    def _to_beat(self, standing: Standing) -> float:
        if self._always:
            return -math.inf
        current = standing.find(standing.current)
        rivals = [revision for revision in standing.revisions if revision is current or revision.job == self._job]
        known = [revision.metrics["success"] for revision in rivals if "success" in revision.metrics]
        if current is None or "success" not in current.metrics:
            if self._over is None:
                raise ValueError(
                    f"publish: the success of {standing.current!r}, which is served, is not known: say what to beat "
                    "(--publish-over RATE), or --publish-always"
                )
            known.append(self._over)
        return max(known)


def publisher(folder: Path | None, *, job: Path, always: bool, over: float | None) -> Publisher | None:
    """Return what a command's options ask for.

    Args:
        job: the run's folder.

    Raises:
        typer.BadParameter: see `Publisher`.
    """
    if folder is None:
        return None
    try:
        return Publisher(folder, job=job.name, always=always, over=over)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def considering(
    to: Publisher | None, make: Callable[[Path], object], *, say: Callable[[str], object]
) -> Callable[[Mapping[str, float]], None] | None:
    """Return what a run tells its evaluations to: it publishes what `make` writes where that is better, and says so."""
    if to is None:
        return None

    def consider(metrics: Mapping[str, float]) -> None:
        revision = to.consider(make, metrics)
        if revision is not None:
            say(f"published {revision}")

    return consider
