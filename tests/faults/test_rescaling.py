"""A stop with a savepoint and a resumption at another parallelism: what waited in state goes on."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.faults.live_join import BOUND_S, LiveJoin

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.deep, pytest.mark.timeout(600)]


@pytest.mark.parametrize("parallelism", [1, 2])
def test_from_two_to_one_and_back(join: LiveJoin, wait_for: Callable[..., None], parallelism: int) -> None:
    first, second = join.next_stretch().halves()
    join.append(first)
    wait_for(join.has_read, "the first half waits in state", BOUND_S)
    wait_for(lambda: join.balances()["join"]["impressions_waiting"] > 50, "the join has them", BOUND_S)
    join.command("job", "stop", join.name)
    join.append(second)
    join.resume(f"--parallelism={parallelism}")
    job = join.rest.job(join.name)
    # The seed of the source has one subtask, whatever the parallelism.
    assert max(v["parallelism"] for v in join.rest.get(f"/jobs/{job.id}")["vertices"]) == parallelism
    join.check()
