"""``cuckooflow backfill join``: the join of whole days, from bounded inputs to files by day.

Phases: scan all ranges of the inputs; settle the keys; then, day by day, join the slices and commit. Each is
a Beam pipeline of tasks, on any runner, and what a killed run had done is not done again.
"""

from __future__ import annotations

import posixpath
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import date
from typing import Any

import numpy as np
import numpy.typing as npt

from cuckooflow.errors import BackfillUnbalanced
from cuckooflow.pipelines.backfill.estimate import Layout, choose_layout, sample_inputs
from cuckooflow.pipelines.backfill.handing_over import HAND_OVER, make_hand_over
from cuckooflow.pipelines.backfill.inputs import JobInputs
from cuckooflow.pipelines.backfill.request import BackfillRequest
from cuckooflow.pipelines.backfill.run_state import (
    FolderLock,
    RunState,
    end_run,
    fingerprint,
    resume_or_begin,
    run_file,
    work_folder,
)
from cuckooflow.pipelines.job_spec import JobSpec
from cuckooflow.pipelines.options import declared_columns, join_options
from cuckooflow.pipelines.run import BatchRuns
from cuckooflow.transforms.backfill_join import RunMark, RunTasks
from cuckooflow.transforms.backfill_tasks import (
    BackfillOptions,
    LettersTask,
    OrderTask,
    ScanTask,
    SettleTask,
    SliceTask,
    Task,
    UnorderedBlock,
    read_done,
)
from cuckooflow.transforms.balances import JOIN, SAMPLING, SOURCE, imbalances
from cuckooflow.transforms.day_files import (
    DAY_US,
    DayManifest,
    commit_day,
    day_start_us,
    days_between,
    read_manifest,
)
from cuckooflow.transforms.in_band import END_TIME_US, NO_TIME_US
from cuckooflow.transforms.join_outputs import ExamplesSchema
from cuckooflow.transforms.pieces import (
    ACTION_ROWS,
    IMPRESSION_ROWS,
    KEYS,
    LETTERS,
    UNORDERED_LETTERS,
    UNORDERED_ROWS,
    VERDICTS,
    Catalogue,
)
from cuckooflow.transforms.prefix_watermarks import latest_before_blocks
from cuckooflow.transforms.scan_ranges import ScanOptions
from cuckooflow.transforms.slice_join import complete
from cuckooflow.transforms.source_counts import add_counts
from cuckooflow.transforms.whole_files import list_files, read_whole, remove, write_whole

#: Rows that one task puts in order, block after block, default 64 MiB: a task's work, not its memory.
ORDER_BYTES = 64 << 20

Tell = Callable[[str], None]


def run_join_backfill(job: JobSpec, request: BackfillRequest, batch: BatchRuns, tell: Tell) -> None:
    """Make the days that are asked for, or go on with what a killed run had made of them.

    Args:
        batch: runs the phases.
        tell: is given a line for each phase and day.

    Raises:
        CuckooflowError: by name.
    """
    with FolderLock(request.out):
        batch.begin()
        inputs = JobInputs.of(job, request.range_messages)

        def begin() -> tuple[dict[str, Any], Layout]:
            listing = inputs.listing()
            samples = [sample for sample, _ in sample_inputs(inputs.ranges(listing), job)]
            return listing, choose_layout(samples, job, request.slice_bytes)

        asked = fingerprint(_asked(job, request, inputs))
        state, resumed = resume_or_begin(request.out, asked, begin, request.restart)
        if resumed:
            tell(f"run={state.run} resumed")
        options = backfill_options(job, request, state)
        _Backfill(job, request, state, options, inputs, batch, tell).run()
        end_run(request.out)


def _asked(job: JobSpec, request: BackfillRequest, inputs: JobInputs) -> dict[str, Any]:
    parts = {name: getattr(job, name) for name in ("columns", "join", "labels", "negative_sampling")}
    return {
        "name": job.name,
        "parts": {
            name: {k: v.model_dump() for k, v in part.items()}
            if isinstance(part, dict)
            else part.model_dump()
            for name, part in parts.items()
        },
        "partitions": job.address(job.logs.examples).partitions,
        "inputs": inputs.names(),
        "files": job.backfill.model_dump(),
        "days": [request.first, request.until],
        "slice_bytes": request.slice_bytes,
        "range_messages": request.range_messages,
        "hand_over_us": request.hand_over_us,
    }


def backfill_options(job: JobSpec, request: BackfillRequest, state: RunState) -> BackfillOptions:
    """What all tasks of a run agree on."""
    join = join_options(job)
    window_us = join.window_us
    first_us, until_us = day_start_us(request.first), day_start_us(request.until)
    scan = ScanOptions(
        max_future_skew_us=job.join.max_future_skew,
        num_shards=join.num_shards,
        slice_us=state.layout.slice_us,
        impressions_us=(first_us - window_us, until_us),
        actions_us=(first_us - window_us, until_us + window_us + 1),
        keys_until_us=until_us,
        key=join.key,
        key_buckets=state.layout.key_buckets,
        block_offsets=state.layout.block_offsets,
    )
    impressions, actions = declared_columns(job)
    return BackfillOptions(
        schema=complete(ExamplesSchema(join, impressions, actions)),
        scan=scan,
        max_skew_us=job.join.max_skew,
        rate=job.negative_sampling.rate,
        seed=job.negative_sampling.seed,
        partitions=job.address(job.logs.examples).partitions,
        clock_us=END_TIME_US if request.hand_over_us is None else request.hand_over_us,
        slice_bytes=request.slice_bytes,
    )


class _Backfill:
    """One run."""

    def __init__(
        self,
        job: JobSpec,
        request: BackfillRequest,
        state: RunState,
        options: BackfillOptions,
        inputs: JobInputs,
        batch: BatchRuns,
        tell: Tell,
    ) -> None:
        self._job = job
        self._request = request
        self._state = state
        self._options = options
        self._inputs = inputs
        self._batch = batch
        self._mark = RunMark(run_file(request.out), state.run)
        self._tell = tell
        self._work = work_folder(request.out)

    def run(self) -> None:
        """All phases."""
        scanned = self._scan()
        check_balance("inputs", {SOURCE: scanned.counts})
        self._tell(" ".join(["inputs", *(f"{name}={n}" for name, n in sorted(scanned.counts.items()) if n)]))
        latest_us = before_blocks(scanned)
        verdicts = self._settle(scanned, latest_us)
        if self._request.hand_over_us is not None:
            places = self._inputs.partitions(self._state.listing)
            hand_over = make_hand_over(self._request, self._options, places, scanned, latest_us, verdicts)
            path = posixpath.join(self._request.out, HAND_OVER)
            write_whole(path, hand_over.to_bytes())
            self._tell(f"hand_over={path}")
        for day in days_between(self._request.first, self._request.until):
            manifest = read_manifest(self._request.out, day)
            if manifest is None or manifest.run != self._state.run:
                self._make_day(day, scanned, latest_us, verdicts)

    def _run(self, phase: str, tasks: Sequence[Task]) -> None:
        """Do those of the tasks that are not done."""
        done = {entry.path for entry in list_files(self._work)}
        left = [task for task in tasks if task.done not in done]
        started = time.monotonic()
        if left:
            self._batch.run(
                phase, lambda pipeline: pipeline | phase >> RunTasks(left, self._options, self._mark)
            )
        took = time.monotonic() - started
        self._tell(
            f"phase={phase} tasks={len(tasks)} done_before={len(tasks) - len(left)} seconds={took:.1f}"
        )

    def _scan(self) -> Catalogue:
        ranges = self._inputs.ranges(self._state.listing)
        tasks = [ScanTask(self._pieces("scan", n), range_) for n, range_ in enumerate(ranges)]
        self._run("scan", tasks)
        scanned = Catalogue.load([task.path for task in tasks])
        if all(range_.ordered for range_ in ranges):
            return scanned
        ordering = [
            OrderTask(self._pieces("order", n), blocks)
            for n, blocks in enumerate(unordered_blocks(scanned, self._options))
        ]
        self._run("order", ordering)
        laid_out = [task.path for task, range_ in zip(tasks, ranges, strict=True) if range_.ordered]
        found = Catalogue.load(laid_out + [task.path for task in ordering])
        # What was read of inputs without order is counted where it was read, what was put in order there.
        counts = dict(scanned.counts)
        add_counts(counts, Catalogue.load([task.path for task in ordering]).counts)
        return replace(found, counts=counts)

    def _pieces(self, phase: str, number: int) -> str:
        return posixpath.join(self._work, f"{phase}-{number:06}.pieces")

    def _settle(self, scanned: Catalogue, latest_us: npt.NDArray[np.int64]) -> Catalogue:
        keys = scanned.pieces["kind"] == KEYS
        tasks = [
            SettleTask(
                self._pieces("keys", bucket),
                scanned.where(keys & (scanned.pieces["place"] == bucket), latest_us),
            )
            for bucket in range(self._state.layout.key_buckets)
        ]
        self._run("keys", tasks)
        return Catalogue.load([task.path for task in tasks])

    def _make_day(
        self, day: date, scanned: Catalogue, latest_us: npt.NDArray[np.int64], verdicts: Catalogue
    ) -> None:
        started = time.monotonic()
        written = posixpath.join(self._work, day.isoformat())
        start_us = day_start_us(day)
        tasks: list[Task] = list(self._slices(start_us, written, scanned, latest_us, verdicts))
        tasks.append(self._letters(start_us, written, scanned, latest_us))
        self._run(day.isoformat(), tasks)
        blobs = (read_whole(task.done) for task in tasks)
        files, counts = read_done(blob for blob in blobs if blob is not None)
        sampling = {name: counts.get(name, 0) for name in ("examples", "kept", "sampled_out")}
        check_balance(day.isoformat(), {JOIN: counts, SAMPLING: sampling})
        manifest = DayManifest(
            day=day.isoformat(),
            job=self._job.name,
            run=self._state.run,
            log=f"{self._job.name}/backfill",
            incarnation=self._state.fingerprint,
            partitions=self._options.partitions,
            files=tuple(files),
            counts=counts,
            inputs=scanned.counts,
            until_us=self._request.hand_over_us,
        )
        commit_day(self._request.out, manifest, written)
        remove(written)
        took = time.monotonic() - started
        shown = " ".join(
            f"{kind}={manifest.rows(kind)}" for kind in ("examples", "late", "unmatched", "dead_letters")
        )
        self._tell(f"day={day.isoformat()} {shown} seconds={took:.1f}")

    def _slices(
        self,
        day_us: int,
        written: str,
        scanned: Catalogue,
        latest_us: npt.NDArray[np.int64],
        verdicts: Catalogue,
    ) -> list[SliceTask]:
        slice_us, window_us = self._options.scan.slice_us, self._options.schema.options.window_us
        p, v = scanned.pieces, verdicts.pieces
        tasks = []
        for number in range(day_us // slice_us, (day_us + DAY_US) // slice_us):
            begin, end = number * slice_us, (number + 1) * slice_us
            first, last = (begin - window_us) // slice_us, (end + window_us) // slice_us
            shown = (p["kind"] == IMPRESSION_ROWS) & (p["place"] >= first) & (p["place"] <= number)
            acted = (p["kind"] == ACTION_ROWS) & (p["place"] >= first) & (p["place"] <= last)
            judged = (v["kind"] == VERDICTS) & (v["place"] >= first) & (v["place"] <= number)
            for shard in range(self._options.scan.num_shards):
                rows = scanned.where((shown | acted) & (p["shard"] == shard), latest_us)
                if len(rows.file):
                    refused = verdicts.where(judged & (v["shard"] == shard))
                    tasks.append(SliceTask(written, self._state.run, number, shard, rows.with_more(refused)))
        return tasks

    def _letters(
        self, day_us: int, written: str, scanned: Catalogue, latest_us: npt.NDArray[np.int64]
    ) -> LettersTask:
        blocks = scanned.blocks
        end_us = day_us + DAY_US
        if self._request.hand_over_us is not None and end_us == day_start_us(self._request.until):
            end_us = END_TIME_US  # what was refused before the hand-over and is beyond the last day
        after = np.maximum(latest_us, np.array([b.latest_us for b in blocks], np.int64))
        first_us = _first_times(scanned)
        begin = np.where(latest_us == NO_TIME_US, first_us, latest_us)
        source = scanned.pieces["source"]
        letters = scanned.pieces["kind"] == LETTERS
        near = np.zeros(len(letters), np.bool_)
        if len(blocks):
            ends = np.maximum(after, first_us)
            near = letters & (begin[source] < end_us) & (ends[source] >= day_us)
        chosen = scanned.where(near, latest_us)
        firsts = scanned.where(near, first_us).before_us
        return LettersTask(written, self._state.run, day_us, end_us, chosen, firsts)


def unordered_blocks(scanned: Catalogue, options: BackfillOptions) -> list[tuple[UnorderedBlock, ...]]:
    """The blocks that are to be put in order, neighbours together up to :data:`ORDER_BYTES`."""
    p = scanned.pieces
    mine = np.flatnonzero(np.isin(p["kind"], (UNORDERED_ROWS, UNORDERED_LETTERS)))
    keys = np.stack((p["place"][mine] // 2, p["shard"][mine], p["place"][mine] % 2))
    order = np.lexsort(keys)
    mine, keys = mine[order], keys[:, order]
    tasks: list[tuple[UnorderedBlock, ...]] = []
    group: list[UnorderedBlock] = []
    group_bytes = 0
    for part in np.split(np.arange(len(mine)), np.flatnonzero((np.diff(keys, axis=1) != 0).any(axis=0)) + 1):
        if not len(part):
            continue
        block, partition, log = keys[:, part[0]].tolist()
        pieces = scanned.at(mine[part])
        group.append(UnorderedBlock(log, partition, block * options.scan.block_offsets, pieces))
        group_bytes += int(pieces.bytes.sum())
        if group_bytes >= ORDER_BYTES:
            tasks.append(tuple(group))
            group, group_bytes = [], 0
    return [*tasks, tuple(group)] if group else tasks


def before_blocks(scanned: Catalogue) -> npt.NDArray[np.int64]:
    """For each block, the latest event time before it in its partition."""
    blocks = scanned.blocks
    places = np.array([[b.log, b.partition] for b in blocks], np.int64).reshape(-1, 2)
    _, codes = np.unique(places, axis=0, return_inverse=True)
    firsts = np.array([b.first for b in blocks], np.int64)
    return latest_before_blocks(codes.reshape(-1), firsts, np.array([b.latest_us for b in blocks], np.int64))


def _first_times(scanned: Catalogue) -> npt.NDArray[np.int64]:
    """For each block, an event time at the beginning of its partition; 0 in one without any."""
    found: dict[tuple[int, int], int] = {}
    for block in sorted(scanned.blocks, key=lambda b: (b.log, b.partition, b.first)):
        if block.earliest_us != NO_TIME_US:
            found.setdefault((block.log, block.partition), block.earliest_us)
    return np.array([found.get((b.log, b.partition), 0) for b in scanned.blocks], np.int64)


def check_balance(what: str, sums: Mapping[str, Mapping[str, int]]) -> None:
    """Refuse a day, or inputs, whose rows do not add up.

    Raises:
        BackfillUnbalanced: naming what does not.
    """
    faults = imbalances(sums)
    if faults:
        raise BackfillUnbalanced(f"{what}: {'; '.join(faults)}")
