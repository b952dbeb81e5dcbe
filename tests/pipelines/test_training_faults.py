"""Disks that are full, marks that are unequal, a store of fewer shards: every example counts once, seen id by id."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest

from cuckooflow.pipelines.options import store_addresses
from tests.pipelines.commands import process
from tests.pipelines.counted_job import CountedJob, set_section
from tests.pipelines.store_shards import Shards, Wait

pytestmark = [pytest.mark.slow, pytest.mark.fault, pytest.mark.deep, pytest.mark.timeout(600)]


def test_a_full_disk_and_then_two_shards_of_what_three_had_unequally(
    films: Any, cli: Callable[..., Any], wait_for: Wait
) -> None:
    set_section(films, "store", "{checkpoint_interval: 500ms, buckets: 8, shards: 3}")
    job, shards = CountedJob(films, cli, wait_for), Shards(films, wait_for)

    def train_with_a_full_disk() -> None:
        """More examples, of which one shard's checkpoints hold nothing."""
        before = {shard: shards.checkpoints(shard) for shard in shards.all}
        shards.fill_disk(1)
        job.more()
        job.check()
        wait_for(lambda: shards.said(1, "event=checkpoint_failed"), "a checkpoint that the disk did not take")
        for shard in (0, 2):
            wait_for(lambda s=shard: shards.checkpoints(s)[-1] > before[s][-1], f"shard {shard}'s checkpoint")
        assert shards.checkpoints(1) == before[1]

    with contextlib.ExitStack() as stack:
        stack.callback(shards.end)
        shards.start(*shards.all)
        with process("run", "train", films.spec):
            job.more()
            job.check()
            wait_for(lambda: all(map(shards.checkpoints, shards.all)), "a checkpoint of each shard")
            train_with_a_full_disk()
            shards.kill(1)
            shards.start(1)
            job.check()  # nothing new comes: the trainer sees that the shard fell back
            assert shards.said(1, "event=store_restored") and not shards.said(1, "checkpoint=none")
            train_with_a_full_disk()
        shards.kill(*shards.all)
        folders = [address.parent for address in store_addresses(films.job)]
        job.command(
            "store",
            "reshard",
            *(word for folder in folders for word in ("--from", folder)),
            "--to",
            films.spec.parent / "two",
            "--of",
            2,
        )
        set_section(films, "store", "{checkpoint_interval: 1h, buckets: 8, shards: 2, data: two}")
        shards.start(*shards.all)
        with process("run", "train", films.spec):
            job.check()
            job.more()
            job.check()
