"""How many labels and tokens may still be asked for: by all, and by one job of one caller."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from clients.errors import RoboserveError

if TYPE_CHECKING:
    from collections.abc import Callable

    from serving.preference_config import BudgetSettings

MOST_JOBS = 4096
"""Jobs that are told apart; any further one counts in its caller's unnamed job."""


class Account(NamedTuple):
    """Whose budget: a caller, and the job that it names, or ""."""

    principal: str
    job: str


@dataclass(kw_only=True)
class _Spent:
    labels: int = 0
    tokens: int = 0


class Budget:
    """Counts for one replica; for the event loop's thread.

    Args:
        settings: limits; `now`: monotonic seconds.
    """

    def __init__(self, settings: BudgetSettings, *, now: Callable[[], float]) -> None:
        self._settings, self._now = settings, now
        self._since = now()
        self._all = _Spent()
        self._jobs: dict[Account, _Spent] = {}

    def take(self, account: Account, labels: int) -> None:
        """Count pairs before they are asked for; all of them or none.

        Raises:
            RoboserveError: `budget_exhausted`, naming the limit and what is left.
        """
        self._turn()
        settings, job = self._settings, self._job(account)
        limits = (
            ("labels", labels, self._all.labels, settings.labels),
            ("job_labels", labels, job.labels, settings.job_labels),
            ("tokens", 1, self._all.tokens, settings.tokens),
            ("job_tokens", 1, job.tokens, settings.job_tokens),
        )
        for name, wanted, spent, limit in limits:
            if limit is not None and spent + wanted > limit:
                raise RoboserveError("budget_exhausted", self._text(name, labels, max(0, limit - spent), limit))
        self._all.labels += labels
        job.labels += labels

    def give_back(self, account: Account, labels: int) -> None:
        """Take back pairs of a request that failed."""
        for spent in (self._all, self._job(account)):
            spent.labels = max(0, spent.labels - labels)

    def spend(self, account: Account, tokens: int) -> None:
        """Count what a model read and wrote; what is under way when a limit is reached may go beyond it."""
        self._all.tokens += tokens
        self._job(account).tokens += tokens

    def left(self, account: Account) -> dict[str, int]:
        """Return what is left of each limit that is set."""
        self._turn()
        settings, job = self._settings, self._job(account)
        found = {
            "labels": (settings.labels, self._all.labels),
            "tokens": (settings.tokens, self._all.tokens),
            "job_labels": (settings.job_labels, job.labels),
            "job_tokens": (settings.job_tokens, job.tokens),
        }
        return {name: max(0, limit - spent) for name, (limit, spent) in found.items() if limit is not None}

    def _text(self, name: str, labels: int, left: int, limit: int) -> str:
        what = f"{labels} pairs asked, " if name.endswith("labels") else ""
        when = "" if self._settings.period_s is None else f" in {self._settings.period_s:g} s"
        return f"budget.{name}: {what}{left} left of {limit}{when}"

    def _job(self, account: Account) -> _Spent:
        if self._settings.job_labels is None and self._settings.job_tokens is None:
            return _Spent()  # nobody looks at it
        if account not in self._jobs and len(self._jobs) >= MOST_JOBS:
            account = Account(account.principal, "")
        return self._jobs.setdefault(account, _Spent())

    def _turn(self) -> None:
        period = self._settings.period_s
        if period is not None and self._now() - self._since >= period:
            self._since, self._all, self._jobs = self._now(), _Spent(), {}
