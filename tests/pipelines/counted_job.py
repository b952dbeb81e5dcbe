"""A job with the counting table: stretches of events are joined one by one, and all must be counted once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cuckooflow.pipelines.options import store_addresses

#: For a trainer's first rows, or again after a kill: a worker process and TensorFlow's import on a busy machine.
BOUND_S = 180
_REQUESTS = 120


class CountedJob:
    """See the module.

    Args:
        films: the job; its logs are made.
        cli, wait_for: the fixtures.
    """

    def __init__(self, films: Any, cli: Callable[..., Any], wait_for: Callable[..., None]) -> None:
        self.films, self._cli, self._wait_for = films, cli, wait_for
        films.make_logs()
        self._stretch = 0

    def command(self, *words: object) -> str:
        """What a command prints, which succeeds."""
        done = self._cli(*words)
        assert done.returncode == 0, done.stdout + done.stderr[-4000:]
        return str(done.stdout)

    def more(self) -> None:
        """Join another stretch; the examples before it come again, as after a restarted join."""
        stretch = self.films.events(_REQUESTS, seed=self._stretch + 1, first=self._stretch * _REQUESTS)
        self._stretch += 1
        self.films.append(*stretch)
        self.command("run", "join", self.films.spec, "--stop-at-end")

    def check(self) -> None:
        """Every example is counted once, id by id."""
        rows = self.films.rows(self.films.job.logs.examples.path)
        once = list({(row["request_id"], row["item_id"]): row for row in rows}.values())
        assert len(once) == 4 * _REQUESTS * self._stretch
        expected = self.films.expected_counts(once)
        addresses = store_addresses(self.films.job)

        def counted() -> bool:
            return all(address.exists() for address in addresses) and (
                self.films.trained_counts(addresses) == expected
            )

        self._wait_for(counted, "every example counted once", BOUND_S)
