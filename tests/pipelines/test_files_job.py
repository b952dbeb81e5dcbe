"""A job whose inputs are files that go on coming: its examples, what is refused, and what a runner keeps of it."""

from __future__ import annotations

import gzip
import io
import json
import os
import signal
from collections import Counter
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cuckooflow.errors import ReadOnlyInput, SpecError
from cuckooflow.pipelines.dataflow_run import run_on_dataflow
from cuckooflow.pipelines.job_spec import JobSpec
from cuckooflow.pipelines.spec_file import SpecFaults, load_spec, parse_spec
from cuckooflow.runners.cluster import LocalCluster
from cuckooflow.runners.flink_rest import FlinkRest
from cuckooflow.transforms.balances import imbalances, totals
from cuckooflow.transforms.hand_over import HandOver
from tests.pipelines.commands import process

START_MS = 1_767_225_600_000
DAY_MS = 86_400_000
IMPRESSIONS = "{path: logs/impressions, partitions: 2}"
ACTIONS = "{path: logs/actions}"
EXAMPLES = "{path: logs/examples, partitions: 2}"
PARQUET = '{files: {path: "in/shown/**.parquet", format: parquet, list_every: 100ms}}'
JSON_LINES = "{files: {path: in/done, format: json, list_every: 100ms}}"
REQUESTS = 300
#: For a job until its first rows, on a busy machine.
BOUND_S = 240
Rows = list[dict[str, Any]]


def changed(films: Any, *changes: tuple[str, str]) -> str:
    text: str = films.spec.read_text()
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new, 1)
    return text


class Inputs:
    """The folder that files of the films job are put into, each under its name when it is whole."""

    def __init__(self, films: Any, name: str = "films") -> None:
        self.films = films
        films.spec.write_text(
            changed(films, (IMPRESSIONS, PARQUET), (ACTIONS, JSON_LINES), ("name: films", f"name: {name}"))
        )
        films.job = load_spec(films.spec)
        self.folder = films.job.dir / "in"
        for name in ("shown", "done"):
            (self.folder / name).mkdir(parents=True)

    @property
    def job(self) -> JobSpec:
        found: JobSpec = self.films.job
        return found

    def put(self, name: str, content: bytes) -> None:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        beside = path.with_name(f"_{path.name}")
        beside.write_bytes(content)
        beside.rename(path)

    def put_events(self, impressions: Rows, actions: Rows, mark: str) -> None:
        """As files of 100 rows, in the order of time."""
        for at in range(0, len(impressions), 100):
            sink = io.BytesIO()
            pq.write_table(pa.Table.from_pylist(impressions[at : at + 100]), sink)
            self.put(f"shown/{mark}/{at:05d}.parquet", sink.getvalue())
        for at in range(0, len(actions), 100):
            lines = b"".join(json.dumps(row).encode() + b"\n" for row in actions[at : at + 100])
            self.put(f"done/{mark}-{at:05d}.jsonl.gz", gzip.compress(lines))

    def close_windows(self, at_ms: int, mark: str) -> None:
        """Bring the clocks to a time, by events that nothing else is expected of."""
        shown = {
            "request_id": "r-closing-",
            "item_id": "i0",
            "time": at_ms,
            "user_id": "u",
            "genres": ["all"],
        }
        done = {"request_id": "none", "item_id": "i0", "time": at_ms, "action": "click"}
        self.put_events([shown], [done], mark)


@pytest.fixture
def inputs(films: Any) -> Inputs:
    return Inputs(films)


# --- the job spec ----------------------------------------------------------------------------


def test_inputs_may_be_files_and_nothing_else(films: Any) -> None:
    job = parse_spec(changed(films, (IMPRESSIONS, PARQUET), (ACTIONS, JSON_LINES)), films.spec)
    assert str(job.input(job.logs.actions)) == f"files {films.spec.parent}/in/done"
    assert job.written_inputs() == []
    beside = changed(films, (ACTIONS, "{files: {path: ../done/*.json, format: json}}"))
    moved = parse_spec(beside, films.spec)
    assert str(moved.input(moved.logs.actions)) == f"files {films.spec.parent.parent}/done/*.json"
    with pytest.raises(SpecFaults) as caught:
        parse_spec(changed(films, (EXAMPLES, PARQUET)), films.spec)
    (fault,) = caught.value.faults
    assert fault.location == ("logs", "examples")
    assert "files may be impressions and actions only" in fault.allowed


@pytest.mark.parametrize(
    ("new", "field", "words"),
    [
        ("{files: {path: in}}", "logs.actions.files.format", "required"),
        ("{files: {format: json}}", "logs.actions.files.path", "required"),
        ("{files: {path: 'in/[ab].json', format: json}}", "logs.actions.files.path", "without ?, [ and ]"),
        ("{files: {path: in, format: csv}}", "logs.actions.files.format", "'parquet', 'json' or 'tfrecord'"),
        ("{files: {path: in, format: json, value: v}}", "logs.actions.files", "value only with the format parquet"),
        ("{files: {path: in, format: json, partition: 2}}", "logs.actions.files.partition", "did you mean that"),
        ("{files: {path: in, format: json, list_every: 5}}", "logs.actions.files.list_every", "a number and a unit"),
        ("{files: {path: in, format: json, order: time}}", "logs.actions.files.order", "'name' or 'modified'"),
    ],
)  # fmt: skip
def test_faults_of_files_name_the_field(films: Any, new: str, field: str, words: str) -> None:
    with pytest.raises(SpecFaults) as caught:
        parse_spec(changed(films, (ACTIONS, new)), films.spec)
    faults = {".".join(map(str, f.location)): f"{f.received}; {f.allowed}" for f in caught.value.faults}
    assert words in faults[field]


def test_messages_of_a_format_that_the_files_do_not_hold(films: Any) -> None:
    text = changed(films, (IMPRESSIONS, PARQUET), (ACTIONS, JSON_LINES))
    text += "messages: {impressions: {format: tf_example}, actions: {format: arrow}}\n"
    with pytest.raises(SpecFaults) as caught:
        parse_spec(text, films.spec)
    allowed = {fault.location: fault.allowed for fault in caught.value.faults}
    assert allowed["messages", "impressions", "format"].startswith("json or arrow, as logs.impressions.files")
    assert allowed["messages", "actions", "format"].startswith("json, as logs.actions.files")
    records = "{files: {path: in, format: tfrecord}}"
    text = changed(films, (ACTIONS, records)) + "messages: {actions: {format: tf_example}}\n"
    assert parse_spec(text, films.spec).messages.actions.format == "tf_example"


def test_what_would_write_files_or_read_them_by_offsets_is_refused(
    inputs: Inputs, cli: Callable[..., Any]
) -> None:
    days = ("--from", "2026-01-01", "--to", "2026-01-02", "--out", inputs.folder / "days")
    done = cli("backfill", "join", inputs.films.spec, *days)
    assert done.returncode == 2
    assert f"received files {inputs.job.logs.impressions.files.path}" in done.stderr  # type: ignore[union-attr]
    with pytest.raises(SpecError, match="files in a bucket with their manifest in one"):
        run_on_dataflow("join", inputs.job, [])
    from cuckooflow.pipelines.options import action_schema, impression_schema
    from cuckooflow.transforms.read_logs import LogInput, ReadLogs

    places = [
        LogInput(inputs.job.input(log), schema)
        for log, schema in (
            (inputs.job.logs.impressions, impression_schema(inputs.job)),
            (inputs.job.logs.actions, action_schema(inputs.job)),
        )
    ]
    with pytest.raises(ReadOnlyInput, match="a hand-over"):
        ReadLogs(*places, hand_over=HandOver(1, 1, 1, 1, ("k",), {}))


# --- in this process -------------------------------------------------------------------------


@pytest.mark.deep
@pytest.mark.slow
@pytest.mark.parametrize(
    "runner", ["direct", pytest.param("prism", marks=[pytest.mark.prism, pytest.mark.deep])]
)
def test_a_join_of_files_with_a_damaged_one_among_them(
    inputs: Inputs, cli: Callable[..., Any], runner: str, request: pytest.FixtureRequest
) -> None:
    if runner == "prism":
        request.getfixturevalue("prism")
    films = inputs.films
    impressions, actions = films.events(REQUESTS)
    inputs.put_events(impressions, actions, "day-1")
    inputs.put("shown/day-1/00500b.parquet", b"PAR1 and no more")
    inputs.put("shown/day-1/_temporary.parquet", b"half")
    before = {path: path.read_bytes() for path in films.job.dir.rglob("*") if path.is_file()}

    shown = cli("preview", films.spec, "--rows", 4 * REQUESTS + 1)
    assert shown.returncode == 0, shown.stderr[-4000:]
    assert f"{len(films.expected)} examples" in shown.stdout
    assert "unreadable_file" in shown.stdout
    assert f"{40} examples" in cli("preview", films.spec, "--rows", 40).stdout
    assert {path: path.read_bytes() for path in films.job.dir.rglob("*") if path.is_file()} == before
    plan = cli("plan", films.spec, "--runner", runner)
    assert "files in/shown/**.parquet, files in/done" in plan.stdout, plan.stderr

    done = cli("run", "join", films.spec, "--runner", runner, "--stop-at-end")
    assert done.returncode == 0, done.stderr[-4000:]
    assert films.labels() == films.expected
    assert len(films.rows(films.job.logs.examples.path)) == len(films.expected)
    (letter,) = films.rows(films.job.logs.dead_letters.path)
    assert (letter["reason"], letter["row"]) == ("unreadable_file", -1)
    assert "shown/day-1/00500b.parquet" in letter["detail"]
    sums = totals(films.rows(films.job.logs.join_balances.path))
    assert imbalances(sums) == []
    assert sums["source"]["impressions_read"] == len(impressions) + 1
    assert sums["source"]["impressions_refused"] == 1
    listed = cli("dlq", "show", films.spec)
    assert "00500b.parquet" in listed.stdout, listed.stderr
    replayed = cli("dlq", "replay", films.spec)
    assert "read_only=1" in replayed.stdout, replayed.stderr


def read(films: Any, log: str) -> int:
    """Rows of a log that the source has read, by its newest balance."""
    balances = films.job.logs.join_balances.path
    if not films.log_has_rows(balances):
        return 0
    # The join's own balances may come first.
    return totals(films.rows(balances)).get("source", {}).get(f"{log}_read", 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "runner", ["direct", pytest.param("prism", marks=[pytest.mark.prism, pytest.mark.deep])]
)
def test_files_that_come_while_it_runs_are_joined_whatever_their_names(
    inputs: Inputs, wait_for: Callable[..., None], runner: str, request: pytest.FixtureRequest
) -> None:
    if runner == "prism":
        request.getfixturevalue("prism")
    films = inputs.films
    impressions, actions = films.events(REQUESTS)
    half = len(impressions) // 2
    end_ms = impressions[half]["time"]
    early = [row for row in actions if row["time"] < end_ms]
    inputs.put_events(impressions[:half], early, "m")
    with process("run", "join", films.spec, "--runner", runner):
        wait_for(lambda: read(films, "impressions") == half, "the first half read", BOUND_S)
        # Names before those that were read: what comes later is read later.
        inputs.put_events(impressions[half:], actions[len(early) :], "a")
        # Files that are seen together are read by name: those that close windows have to be seen later.
        wait_for(lambda: read(films, "impressions") == len(impressions), "the second half read", BOUND_S)
        wait_for(lambda: read(films, "actions") == len(actions), "the actions read", BOUND_S)
        inputs.close_windows(START_MS + DAY_MS // 2, "0")
        wait_for(lambda: films.labels() == films.expected, "every impression's example", BOUND_S)
    assert films.rows(films.job.logs.dead_letters.path) == []


# --- on Flink --------------------------------------------------------------------------------


@pytest.mark.cluster
@pytest.mark.fault
@pytest.mark.deep
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_worker_killed_while_files_come_and_a_resumption_lose_and_double_nothing(
    films: Any, flink: LocalCluster, cli: Callable[..., Any], wait_for: Callable[..., None]
) -> None:
    inputs = Inputs(films, "films_of_files")
    url = flink.addresses().flink_rest
    assert url is not None
    rest, name = FlinkRest(url), "films_of_files-join"
    impressions, actions = films.events(600)

    def part(number: int) -> tuple[Rows, Rows]:
        """A sixth of the events, by time."""
        low, high = (START_MS + n * 400_000 for n in (number, number + 1))
        last = number == 5
        shown = [row for row in impressions if low <= row["time"] < high]
        return shown, [row for row in actions if low <= row["time"] and (last or row["time"] < high)]

    def labelled(requests: int) -> Callable[[], bool]:
        return lambda: {f"r{n}" for n in range(requests)} <= {request for request, _ in films.labels()}

    for number in (0, 1, 2):
        inputs.put_events(*part(number), f"m{number}")
    words = ("--runner", "flink", "--detach", "--checkpointing_interval=2000", "--cluster", flink.folder)
    try:
        done = cli("run", "join", films.spec, *words)
        assert done.returncode == 0, done.stdout + done.stderr[-4000:]
        # The like window is half an hour, a part's time 400 s: nothing of these is closed before the sixth.
        job = rest.job(name).id
        wait_for(lambda: rest.newest_checkpoint(job), "a checkpoint", BOUND_S)
        worker = flink.worker_pids()[-1]
        inputs.put_events(*part(3), "a3")
        os.kill(worker, signal.SIGKILL)
        inputs.put_events(*part(4), "b4")
        wait_for(
            lambda: worker not in flink.worker_pids() and rest.job(name).at_work, "it runs again", BOUND_S
        )
        inputs.put_events(*part(5), "c5")
        wait_for(labelled(100), "the first windows closed", BOUND_S)
        wait_for(lambda: read(films, "actions") == len(actions), "the actions read", BOUND_S)
        stopped = cli("job", "stop", name, "--cluster", flink.folder)
        assert stopped.returncode == 0, stopped.stderr[-2000:]
        inputs.close_windows(START_MS + DAY_MS // 2, "0")
        resumed = cli("job", "resume", "join", films.spec, "--detach", "--cluster", flink.folder)
        assert resumed.returncode == 0, resumed.stdout + resumed.stderr[-4000:]
        wait_for(lambda: films.labels() == films.expected, "every impression's example", BOUND_S)

        def counts() -> dict[str, dict[str, int]]:
            return totals(films.rows(films.job.logs.join_balances.path))  # type: ignore[no-any-return]

        count = len(impressions) + 1
        wait_for(lambda: counts()["join"].get("impressions") == count, "the balances", BOUND_S)
        sums = counts()
        assert imbalances(sums) == []
        assert sums["join"]["impressions_repeated"] == sums["join"]["actions_repeated"] == 0
        assert sums["source"]["impressions_read"] == count
        assert sums["source"]["actions_read"] == len(actions) + 1
        assert films.rows(films.job.logs.dead_letters.path) == []
        rows = films.rows(films.job.logs.examples.path)
        again = Counter((row["request_id"], row["item_id"]) for row in rows)
        print(f"examples={len(again)} written_again={len(rows) - len(again)}")
    finally:
        for one in rest.jobs():
            if one.name == name and not one.ended:
                rest.cancel(one.id)
