"""A run's time: what was worked, what was lost, what is left, and which part of it a group gets."""

import math
import time
from collections.abc import Callable

from flurka_bench.bench.kind import Allowance

LOOK_INTERVAL_S = 1.0  # how often the parent wakes to see whether the worker still beats
_PAUSE_SLACK_S = (
    2.0  # a busy machine wakes the parent later than it asked for, but not by this much
)


class LostTime:
    """Seconds in which a run could not work: suspended, waiting for a hung worker, or
    starting another.

    A suspended process is told nothing of it (SIGSTOP cannot be caught), so a suspension is a gap
    between two ``tick``s that the parent, which ticks about every second, cannot have slept itself.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now, self._last = now, now()
        self.total_s = 0.0

    def tick(self) -> float:
        """Notes that the parent runs; the seconds of a suspension that has just ended, else 0."""
        now = self._now()
        gap_s, self._last = now - self._last - LOOK_INTERVAL_S, now
        if gap_s < _PAUSE_SLACK_S:
            return 0.0
        self.total_s += gap_s
        return gap_s

    def restart(self) -> None:
        """Forget what was lost so far."""
        self._last, self.total_s = self._now(), 0.0


class Budget:
    """The clock of a run that has ``total_s`` seconds (None: no bound) at ``num_places`` places.

    Groups may be in hand at several places at once: what is promised to them is not given again.
    """

    def __init__(
        self,
        total_s: float | None,
        *,
        num_places: int = 1,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total_s = math.inf if total_s is None else total_s
        self._now, self._num_places = now, num_places
        self.lost = LostTime(now)
        self._since: float | None = None
        self._shares: list[Share] = []

    @property
    def has_begun(self) -> bool:
        """Whether the clock runs."""
        return self._since is not None

    def begin(self) -> None:
        """The first worker is up: from now on the budget is charged."""
        if self._since is None:
            self._since = self._now()
            self.lost.restart()

    def wall_s(self) -> float:
        """Seconds since the clock was begun."""
        assert self._since is not None
        return self._now() - self._since

    def worked_s(self) -> float:
        """The same less what was lost: what the budget is charged with."""
        self.lost.tick()
        return self.wall_s() - self.lost.total_s

    def left_s(self) -> float:
        """What is left; infinite without a bound, and below 0 where it was overdrawn."""
        return self.total_s - self.worked_s()

    def share(self, weight: float, waiting: float) -> "Share":
        """A share for a group of this weight, where all groups that wait, it included, weigh
        ``waiting``. It is in hand until ``Share.close``."""
        free_s = left_s = self.left_s()
        if math.isfinite(left_s):
            promised_s = sum(share.left_s() for share in self._shares)
            free_s = left_s * self._num_places - promised_s
        share = Share(self, min(free_s * (weight / waiting), left_s))
        self._shares.append(share)
        return share

    def close(self, share: "Share") -> None:
        """What the share did not use is free again."""
        self._shares.remove(share)


class Share:
    """A group's part of the time. Where gate, warm-up and the fewest rounds take more, the group
    may take twice its share, but not more than the run has left."""

    def __init__(self, budget: Budget, seconds: float) -> None:
        self._budget, self._seconds, self._started = budget, seconds, budget.worked_s()
        self._latest = self._started + min(2 * seconds, budget.left_s())

    def left_s(self) -> float:
        """What the group may still take of its share."""
        return max(self._seconds - (self._budget.worked_s() - self._started), 0.0)

    def allowance(self) -> Allowance:
        """The same for the worker; a deadline of 0 or less: nothing more is begun."""
        return Allowance(share_s=self.left_s(), deadline_s=self._latest - self._budget.worked_s())
