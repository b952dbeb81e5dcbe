"""Who takes deltas, and up to which version each has them safely.

Not thread-safe: the store's lock covers it.
"""

from __future__ import annotations

from cuckooflow.errors import FullDeltaNeeded, LimitExceeded, UnknownVersion

#: More than this many names are a fault of the caller (a new name each time), not consumers.
CONSUMERS_MAX = 64


class DeltaConsumers:
    """Consumer -> the version it acknowledged. Lives as long as the store's incarnation."""

    def __init__(self) -> None:
        self._acknowledged: dict[str, int | None] = {}
        self._first_given: dict[str, int] = {}
        self._newest_given = 0

    def base(self, consumer: str, full: bool, lost: int = 0) -> int | None:
        """What the consumer's next delta stands on; None for a full one.

        Args:
            lost: the version up to which it is not known any more what was touched.

        Raises:
            FullDeltaNeeded: it asked for less than a full one and never acknowledged anything, or nothing
                as late as ``lost``.
            LimitExceeded: too many consumers.
        """
        if consumer not in self._acknowledged and len(self._acknowledged) >= CONSUMERS_MAX:
            raise LimitExceeded(
                f"expected at most {CONSUMERS_MAX} consumers of deltas, received one more, {consumer!r}. "
                "Use one name a consumer and keep it."
            )
        if full:
            return None
        acknowledged = self._acknowledged.get(consumer)
        if acknowledged is None:
            raise FullDeltaNeeded(
                f"consumer {consumer!r} acknowledged nothing in this incarnation of the store, so a delta has "
                "nothing to stand on. Ask for a full one."
            )
        if acknowledged < lost:
            raise FullDeltaNeeded(
                f"consumer {consumer!r} acknowledged version {acknowledged}, and what was touched up to version {lost} "
                "is over the store's delta_backlog_max. Ask for a full one, ack more often, or raise the bound."
            )
        return acknowledged

    def given(self, consumer: str, version: int) -> None:
        """A delta of this version was taken for the consumer."""
        self._acknowledged.setdefault(consumer, None)
        self._first_given.setdefault(consumer, version)
        self._newest_given = max(self._newest_given, version)

    def ack(self, consumer: str, version: int) -> None:
        """Idempotent; an older version than one acknowledged already changes nothing.

        Raises:
            UnknownVersion: no such version was given to this consumer.
        """
        first = self._first_given.get(consumer)
        if first is None or not first <= version <= self._newest_given:
            raise UnknownVersion(
                f"expected a version that was given to consumer {consumer!r}, received {version}. "
                "Ack the version that delta() answered."
            )
        self._acknowledged[consumer] = max(version, self._acknowledged[consumer] or 0)

    def floor(self, lost: int = 0) -> int:
        """Nobody will ask for what was touched up to this version.

        Args:
            lost: consumers that stand before this version must take a full delta, so they do not count.
        """
        standing = (self._acknowledged[consumer] or first for consumer, first in self._first_given.items())
        return min((version for version in standing if version >= lost), default=lost)
