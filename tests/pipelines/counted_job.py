"""A job with the counting table: stretches of events are joined one by one, and all must be counted once."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from cuckooflow.pipelines.options import store_addresses
from cuckooflow.pipelines.spec_file import load_spec

#: For a trainer's first rows, or again after a kill: a worker process and TensorFlow's import on a busy machine.
BOUND_S = 180
_REQUESTS = 120
#: Request and item.
Key = tuple[str, str]
Impressions = list[dict[str, object]]


def set_section(films: Any, name: str, section: str) -> None:
    """Give the job another section of that name, in one line as the one that it has."""
    lines = films.spec.read_text().splitlines()
    (at,) = (n for n, line in enumerate(lines) if line.startswith(f"{name}: {{"))
    films.spec.write_text("\n".join([*lines[:at], f"{name}: {section}", *lines[at + 1 :]]) + "\n")
    films.job = load_spec(films.spec)


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

    def more(self, change: Callable[[Impressions], None] = lambda _: None) -> None:
        """Join another stretch; the examples before it come again, as after a restarted join.

        Args:
            change: is given its impressions before they are.
        """
        impressions, actions = self.films.events(
            _REQUESTS, seed=self._stretch + 1, first=self._stretch * _REQUESTS
        )
        self._stretch += 1
        change(impressions)
        self.films.append(impressions, actions)
        self.command("run", "join", self.films.spec, "--stop-at-end")

    def examples(self) -> dict[Key, dict[str, Any]]:
        """Each example, by request and item."""
        rows = self.films.rows(self.films.job.logs.examples.path)
        once = {(row["request_id"], row["item_id"]): row for row in rows}
        assert len(once) == 4 * _REQUESTS * self._stretch
        return once

    def check(self, but: Callable[[], Collection[Key]] = tuple) -> None:
        """Every example is counted once, id by id.

        Args:
            but: those that are not, as of when it is called.
        """
        once, addresses = self.examples(), store_addresses(self.films.job)

        def counted() -> bool:
            left_out = but()
            expected = self.films.expected_counts([row for key, row in once.items() if key not in left_out])
            return all(address.exists() for address in addresses) and (
                self.films.trained_counts(addresses) == expected
            )

        self._wait_for(counted, "every example counted once", BOUND_S)
