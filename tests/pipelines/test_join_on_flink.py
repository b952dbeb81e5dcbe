"""The join on a real Flink with workers from a wheel: exact, stopped, rescaled and resumed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from cuckooflow.runners.cluster import LocalCluster
from cuckooflow.runners.flink_rest import FlinkRest
from cuckooflow.transforms.balances import imbalances, totals

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.deep, pytest.mark.timeout(600)]

START_MS = 1_767_225_600_000
DAY_MS = 86_400_000
A_DAY_OF_REQUESTS = 21_600
REQUESTS = 400
#: For a job until its first rows: Flink, a worker process and its imports on a busy machine.
BOUND_S = 180

Labels = dict[tuple[str, str], tuple[int, int]]


class Join:
    """The join of a films job on the shared cluster, and every event that went into its logs."""

    def __init__(self, films: Any, cli: Callable[..., Any], flink: LocalCluster) -> None:
        self.films, self._cli, self._cluster = films, cli, flink
        self.events: tuple[list[Any], list[Any]] = ([], [])
        self.name = f"{films.job.name}-join"
        url = flink.addresses().flink_rest
        assert url is not None
        self.rest = FlinkRest(url)

    def command(self, *words: object) -> str:
        done = self._cli(*words, "--cluster", self._cluster.folder)
        assert done.returncode == 0, done.stdout + done.stderr[-4000:]
        return str(done.stdout)

    def append(self, seed: int, first: int) -> None:
        impressions, actions = self.films.events(REQUESTS, seed, first)
        self.films.append(impressions, actions)
        self.events = (self.events[0] + impressions, self.events[1] + actions)
        self.films.close_windows(START_MS + first * 4_000 + DAY_MS // 2)

    def rows(self) -> list[dict[str, Any]]:
        found = self.films.rows(self.films.job.logs.examples.path)
        return [row for row in found if "-closing-" not in str(row["request_id"])]


@pytest.fixture
def join(films: Any, cli: Callable[..., Any], flink: LocalCluster) -> Iterator[Join]:
    films.make_logs()
    made = Join(films, cli, flink)
    yield made
    for job in made.rest.jobs():
        if job.name == made.name and not job.ended:
            made.rest.cancel(job.id)


def joined_by_duckdb(events: tuple[list[Any], list[Any]]) -> Labels:
    """What the job's spec says, as SQL: an action labels its impression within the window of its type."""
    impressions = pa.Table.from_pylist(events[0])
    actions = pa.Table.from_pylist(events[1])
    query = """
        select i.request_id, i.item_id,
               coalesce(max((a.action = 'click' and a.time - i.time between 0 and 600000)::int), 0),
               coalesce(max((a.action = 'like' and a.time - i.time between 0 and 1800000)::int), 0)
        from impressions i left join actions a using (request_id, item_id) group by all
    """
    with duckdb.connect() as connection:
        connection.register("impressions", impressions)
        connection.register("actions", actions)
        return {(r, i): (click, like) for r, i, click, like in connection.execute(query).fetchall()}


def test_live_then_stopped_then_resumed_at_another_parallelism(
    join: Join, flink: LocalCluster, cli: Callable[..., Any], wait_for: Callable[..., None]
) -> None:
    spec = join.films.spec
    join.append(seed=1, first=0)
    said = join.command("run", "join", spec, "--runner", "flink", "--detach", "--checkpointing_interval=1000")
    job = join.rest.job(join.name)
    assert job.id in said
    assert job.at_work
    wait_for(lambda: join.films.labels() == joined_by_duckdb(join.events), "the first events joined", BOUND_S)

    again = cli("run", "join", spec, "--runner", "flink", "--detach", "--cluster", flink.folder)
    assert again.returncode == 1
    assert job.id in again.stderr
    wait_for(lambda: join.rest.newest_checkpoint(job.id), "a checkpoint")
    line = next(line for line in join.command("job", "list").splitlines() if job.id in line)
    assert "RUNNING" in line
    assert "/chk-" in line
    taken = join.command("job", "savepoint", join.name).strip()
    assert (Path(taken.removeprefix("file:")) / "_metadata").is_file()
    assert join.rest.job(job.id).state == "RUNNING"
    stopped = join.command("job", "stop", job.id).strip()
    assert join.rest.job(job.id).ended

    join.append(seed=2, first=A_DAY_OF_REQUESTS)
    said = join.command("job", "resume", "join", spec, "--detach", "--parallelism=2")
    assert stopped.removeprefix("file:") in said
    resumed = join.rest.job(join.name)
    assert {vertex["parallelism"] for vertex in join.rest.get(f"/jobs/{resumed.id}")["vertices"]} == {1, 2}
    expected = joined_by_duckdb(join.events)
    wait_for(lambda: join.films.labels() == expected, "what came while it was stopped", BOUND_S)
    counts = Counter((row["request_id"], row["item_id"]) for row in join.rows())
    assert set(counts.values()) == {1}  # neither the stop nor the resumption wrote a row again

    def balanced() -> bool:
        sums = totals(join.films.rows(join.films.job.logs.join_balances.path))
        # With two impressions of each of the two closings.
        return sums["join"]["impressions"] == len(join.events[0]) + 4 and not imbalances(sums)

    wait_for(balanced, "the balances")


def test_a_job_of_another_build_is_refused_at_once(
    join: Join, cli: Callable[..., Any], flink: LocalCluster
) -> None:
    done = cli(
        *("run", "join", join.films.spec, "--runner", "flink", "--cluster", flink.folder),
        "--cuckooflow_build=0.0.1+other",
    )
    assert done.returncode == 1
    assert "received one of 0.0.1+other" in done.stderr
    assert join.rest.job(join.name).state == "CANCELED"
    assert not (join.films.job.dir / "flink-jobs.jsonl").exists()  # there is nothing to resume
