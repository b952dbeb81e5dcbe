"""Joins on Flink that faults befall; those that allow it share one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cuckooflow.runners.cluster import LocalCluster
from tests.faults.live_join import LiveJoin


class Shared:
    """The join that the tests share, and how to have another."""

    def __init__(self, make: Callable[[], LiveJoin]) -> None:
        self._make = make
        self._join: LiveJoin | None = None

    def exact(self) -> LiveJoin:
        """It, or a new one where a test left it otherwise than exact."""
        if self._join is None or not self._join.exact:
            self.end()
            self._join = self._make()
            self._join.start()
        self._join.exact = False  # until its next check
        return self._join

    def end(self) -> None:
        if self._join is not None:
            self._join.cancel()
            self._join.close()
            self._join = None


@pytest.fixture(scope="session")
def shared(
    tmp_path_factory: pytest.TempPathFactory, cli: Callable[..., Any], flink: LocalCluster
) -> Iterator[Shared]:
    """For :func:`join`."""
    made = Shared(lambda: LiveJoin(tmp_path_factory.mktemp("faults") / "job", cli, flink))
    yield made
    made.end()


@pytest.fixture
def join(shared: Shared, flink: LocalCluster) -> LiveJoin:
    """A join of old events that runs, and that every test leaves running and exact."""
    flink.up()  # what a test that failed has killed
    return shared.exact()
