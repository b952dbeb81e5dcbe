"""Dead letters shown, filtered and put back: each once, whatever is killed, with the bytes that it had."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pyarrow as pa
import pytest

from cuckooflow.errors import LedgerDamaged, LogLocked, MendFailed, ReplayBusy
from cuckooflow.logs.address import KafkaAddress, LocalAddress
from cuckooflow.logs.local_log import LocalLog, LocalLogWriter
from cuckooflow.pipelines.dlq.ledger import Ledger, digest
from cuckooflow.pipelines.dlq.letters import Letter, Place, Wanted, letters_of_log
from cuckooflow.pipelines.dlq.replay import Replay, load_mend
from cuckooflow.transforms.batch_bytes import decode_batch, encode_batch
from cuckooflow.transforms.dead_letters import DEAD_LETTER_SCHEMA, to_json_lines

MEND = """
import contextlib
import json


def mend(value, letter):
    if letter["reason"] == "empty":
        return None
    body = json.loads(value)
    return json.dumps({**body, "time": int(body["time"])}).encode()
"""


def letter(offset: int, value: bytes | None, reason: str = "wrong_type", row: int = 0, **more) -> dict:
    return {
        "log": "impressions",
        "partition": 0,
        "offset": offset,
        "row": row,
        "reason": reason,
        "detail": "d",
        "value": value,
        "append": 1_000_000 * offset,
        **more,
    }


class Folder:
    """Two input logs and a log of dead letters."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.targets = {name: LocalAddress(path / name, 2) for name in ("impressions", "actions")}
        for address in self.targets.values():
            address.create("frames")
        LocalLog.create(path / "dead")

    def log(self, *letters: dict) -> None:
        batch = pa.RecordBatch.from_pylist(list(letters), schema=DEAD_LETTER_SCHEMA)
        with LocalLogWriter(self.path / "dead") as writer:
            writer.append(0, to_json_lines(batch), 1)

    def letters(self) -> list[Letter]:
        return list(letters_of_log(LocalLog.open(self.path / "dead")))

    def messages(self, log: str, partition: int = 0) -> list[bytes]:
        reader = LocalLog.open(self.path / log)
        end = reader.end_offset(partition)
        return [v.as_py() for batch in reader.read_range(partition, 0, end) for v in batch.values]

    def append(self, log: str, *messages: bytes, partition: int = 0, append_us: int = 1) -> None:
        with LocalLogWriter(self.path / log, [partition]) as writer:
            writer.append(partition, list(messages), append_us)

    def replay(self, letters: list[Letter] | None = None, **more) -> str:
        with Ledger(self.path / "ledger") as ledger:
            work = Replay(self.targets, ledger, **more)
            return str(work.run(self.letters() if letters is None else letters))


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def test_original_bytes_go_back_to_their_log_and_partition_once(folder) -> None:
    raw = [b'{"a', b"\xff\xfe", b'{"k": 1}']
    folder.append("impressions", b"before")
    folder.log(
        letter(1, raw[0], "malformed", -1),
        letter(4, raw[1], "malformed", -1, partition=1),
        letter(2, raw[2], log="actions"),
        letter(1, raw[0], "malformed", -1),  # written twice by a join that was restarted
        letter(3, None, "tombstone", -1),
    )
    assert folder.replay().startswith("replayed=3 already=1 left_out=0 empty=1")
    assert folder.messages("impressions") == [b"before", raw[0]]
    assert folder.messages("impressions", 1) == [raw[1]]
    assert folder.messages("actions") == [raw[2]]
    for _ in range(2):
        assert folder.replay().startswith("replayed=0 already=4")
    assert folder.messages("impressions") == [b"before", raw[0]]


def test_what_the_join_refused_is_read_at_its_place(folder) -> None:
    several = encode_batch(pa.RecordBatch.from_pydict({"k": ["a", "b", "c"]}))
    folder.append("impressions", b'{"k":"whole"}', several)
    parsed = b'{"k": "b", "_time": 5}'
    folder.log(
        letter(0, parsed, "late_impression"),
        letter(1, parsed, "key_reused", 1),
        letter(9, parsed, "late_impression"),
    )
    assert "replayed=2" in folder.replay()
    whole, row = folder.messages("impressions")[2:]
    assert whole == b'{"k":"whole"}'
    assert decode_batch(row).to_pydict() == {"k": ["b"]}
    assert "gone=1" in folder.replay()


def test_a_mended_letter_is_what_the_script_gives(folder, tmp_path) -> None:
    script = tmp_path / "mend.py"
    script.write_text(MEND)
    folder.log(letter(0, b'{"time": "5"}'), letter(1, b"", "empty", -1))
    counts = folder.replay(mend=load_mend(script))
    assert counts.startswith("replayed=1 already=0 left_out=1")
    assert folder.messages("impressions") == [b'{"time": 5}']
    folder.log(letter(2, b'{"time": "x"}'))
    with pytest.raises(MendFailed, match="ValueError"):
        folder.replay(mend=load_mend(script))
    assert folder.messages("impressions") == [b'{"time": 5}']


def test_what_was_put_back_and_refused_again_needs_to_be_asked_for(folder) -> None:
    folder.log(letter(7, b"{"))
    folder.replay()
    folder.log(letter(0, b"{"))  # at offset 0 lies what was put back
    assert "replayed=0 already=1" in folder.replay()
    assert "refused_again=1" in folder.replay()
    assert "replayed=1" in folder.replay(again=True)
    assert folder.messages("impressions") == [b"{", b"{"]


@pytest.mark.parametrize("there", [0, 1, 2, 3])
def test_a_replay_killed_between_intent_and_outcome_is_settled_by_what_the_log_holds(folder, there) -> None:
    """Of three messages so many came into the log; a producer then wrote one of the same bytes."""
    values = [b'{"n": 0}', b'{"n": 1}', b'{"n": 1}']
    folder.append("impressions", b"before")
    folder.log(*(letter(10 + n, value) for n, value in enumerate(values)))
    with Ledger(folder.path / "ledger") as ledger:
        incarnation = LocalLog.open(folder.path / "impressions").incarnation()
        places = [Place("impressions", 0, 10 + n, 0) for n in range(3)]
        ledger.intend("impressions", incarnation, 0, 1, 77, list(zip(places, values, strict=True)))
    if there:
        folder.append("impressions", *values[:there], append_us=77)
    folder.append("impressions", values[1], append_us=78)
    assert folder.replay().startswith(f"replayed={3 - there} already={there}")
    found = folder.messages("impressions")
    assert sorted(found) == sorted([b"before", *values, values[1]])
    assert folder.replay().startswith("replayed=0 already=3")


def test_a_line_of_the_ledger_that_was_being_written_is_forgotten(folder) -> None:
    folder.log(letter(1, b"{"))
    folder.replay()
    whole = (folder.path / "ledger").read_bytes()
    intent, outcome = whole.splitlines(keepends=True)
    (folder.path / "ledger").write_bytes(intent + outcome[:7])
    assert folder.replay().startswith("replayed=0 already=1")
    assert folder.messages("impressions") == [b"{"]
    (folder.path / "ledger").write_bytes(b"no ledger\n")
    with pytest.raises(LedgerDamaged):
        folder.replay()


def test_one_replay_at_a_time_and_no_other_writer(folder) -> None:
    folder.log(letter(1, b"{"))
    with Ledger(folder.path / "ledger"), pytest.raises(ReplayBusy):
        folder.replay()
    with LocalLogWriter(folder.path / "impressions"), pytest.raises(LogLocked):
        folder.replay()
    assert folder.messages("impressions") == []
    assert "replayed=1" in folder.replay()


def test_a_log_made_anew_holds_nothing_that_was_put_back(folder) -> None:
    import shutil

    folder.log(letter(1, b"{"))
    folder.replay()
    shutil.rmtree(folder.path / "impressions")
    folder.targets["impressions"].create("frames")
    assert "replayed=1" in folder.replay()
    assert folder.messages("impressions") == [b"{"]


def test_filters_by_reason_log_and_time() -> None:
    letters = [
        Letter(Place("impressions", 0, 1, 0), "empty", "", 10, b""),
        Letter(Place("actions", 0, 1, 0), "malformed", "", 20, b"{"),
    ]

    def found(**wanted) -> list[int]:
        return [letter.append_us for letter in letters if Wanted(**wanted).takes(letter)]

    assert found() == [10, 20]
    assert found(reasons=("empty", "other")) == [10]
    assert found(log="actions") == [20]
    assert found(since_us=20) == [20]
    assert found(until_us=20) == [10]


# --- the commands ---------------------------------------------------------------------------


def bad_events(films, count: int) -> list[bytes]:
    """Impressions whose time is text: refused, and whole once it is a number."""
    impressions, _ = films.events(count // 4 + 1, first=10_000)
    return [json.dumps({**row, "time": str(row["time"])}).encode() for row in impressions[:count]]


@pytest.mark.deep
@pytest.mark.slow
def test_show_and_replay_of_a_job(films, cli, tmp_path) -> None:
    impressions, actions = films.events(20)
    films.make_logs()
    films.append(impressions, actions)
    bad = bad_events(films, 6)
    with LocalLogWriter(films.job.path(films.job.logs.impressions.path), [1]) as writer:
        writer.append(1, [*bad, b"null"], time.time_ns() // 1_000)
    assert cli("run", "join", films.spec, "--stop-at-end").returncode == 0
    shown = cli("dlq", "show", films.spec, "--reason", "wrong_type", "--limit", 2)
    assert shown.returncode == 0, shown.stderr
    assert "6 impressions wrong_type" in shown.stdout
    assert shown.stdout.count("  wrong_type: expected time") == 2
    assert bad[0].decode() in shown.stdout
    lines = cli("dlq", "show", films.spec, "--json", "--limit", 100).stdout.splitlines()
    assert [json.loads(line)["value"] for line in lines] == [*(b.decode() for b in bad), "null"]
    script = tmp_path / "mend.py"
    script.write_text(MEND)
    words = ("dlq", "replay", films.spec, "--reason", "wrong_type", "--mend", script)
    assert "replayed=6" in cli(*words, "--dry-run").stdout
    assert "replayed=4" in cli(*words, "--limit", 4).stdout
    done = cli(*words)
    assert "replayed=2 already=4" in done.stdout, done.stderr
    assert "replayed=0 already=6" in cli(*words).stdout
    assert "to impressions/1@" in cli("dlq", "show", films.spec, "--reason", "wrong_type").stdout
    # Put back at the source, they are joined as any event.
    assert cli("run", "join", films.spec, "--stop-at-end").returncode == 0
    joined = films.labels()
    mended = {(json.loads(b)["request_id"], json.loads(b)["item_id"]) for b in bad}
    assert mended <= set(joined)
    assert len(joined) == len(impressions) + len(mended)


@pytest.mark.deep
@pytest.mark.slow
@pytest.mark.fault
def test_a_replay_killed_anywhere_and_run_again_appends_once(folder) -> None:
    """Kill -9 at six moments of a replay of 3,000 letters in small batches."""
    values = [json.dumps({"n": n, "more": "x" * 200}).encode() for n in range(3_000)]
    folder.log(*(letter(n, value) for n, value in enumerate(values)))
    program = (
        "import sys; from pathlib import Path;"
        "from cuckooflow.logs.address import KafkaAddress, LocalAddress; from cuckooflow.logs.local_log import LocalLog;"
        "from cuckooflow.pipelines.dlq import replay; from cuckooflow.pipelines.dlq.ledger import Ledger;"
        "from cuckooflow.pipelines.dlq.letters import letters_of_log;"
        "replay.BATCH_MESSAGES = 7; root = Path(sys.argv[1]);"
        "targets = {n: LocalAddress(root / n, 2) for n in ('impressions', 'actions')};"
        "letters = letters_of_log(LocalLog.open(root / 'dead'));"
        "print('begun', flush=True);"
        "replay.Replay(targets, Ledger(root / 'ledger')).run(letters)"
    )
    for round_ in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(folder.path)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        process.stdout.readline()
        before = len(folder.messages("impressions"))
        deadline = time.monotonic() + 60
        while len(folder.messages("impressions")) < before + 40 * (round_ + 1) and process.poll() is None:
            assert time.monotonic() < deadline
        os.kill(process.pid, signal.SIGKILL)
        process.wait(10)
        process.stdout.close()
    assert 0 < len(folder.messages("impressions")) < len(values)
    folder.replay()
    assert folder.messages("impressions") == values
    assert {digest(value) for value in values} == {digest(v) for v in folder.messages("impressions")}


@pytest.mark.deep
@pytest.mark.slow
def test_letters_of_files_by_day_are_the_same_letters(films, cli, tmp_path) -> None:
    impressions, actions = films.events(20)
    films.make_logs()
    films.append(impressions, actions)
    bad = bad_events(films, 3)
    with LocalLogWriter(films.job.path(films.job.logs.impressions.path), [1]) as writer:
        writer.append(1, bad, time.time_ns() // 1_000)
    out = tmp_path / "days"
    done = cli("backfill", "join", films.spec, "--from", "2026-01-01", "--to", "2026-01-02", "--out", out)
    assert done.returncode == 0, done.stderr
    assert "replayed=3" in cli("dlq", "replay", films.spec, "--files", out).stdout
    # The stream's letters are of the same events: they are back already.
    assert cli("run", "join", films.spec, "--stop-at-end").returncode == 0
    assert "already=3" in cli("dlq", "replay", films.spec).stdout


# --- topics ---------------------------------------------------------------------------------


@pytest.mark.cluster
@pytest.mark.parametrize("there", [0, 2, 3])
def test_letters_go_back_to_a_topic_once_while_its_producer_goes_on(folder, kafka, there) -> None:
    """A replay killed after so many of three messages; another producer's lie between and behind."""
    name = f"impressions-{uuid.uuid4().hex[:8]}"
    topic = KafkaAddress(bootstrap=kafka, topic=name, partitions=2)
    topic.create().close()
    folder.targets = {name: topic}
    values = [b'{"n": 0}', b'{"n": 1}', b'{"n": 2}']
    folder.log(*(letter(10 + n, value, log=name) for n, value in enumerate(values)))
    now_us = time.time_ns() // 1_000
    with contextlib.closing(topic.open_writer()) as writer:
        writer.append(0, [values[1]], now_us - 60_000_000)  # as it came, long before
        with contextlib.closing(topic.open_reader()) as reader, Ledger(folder.path / "ledger") as ledger:
            places = [Place(name, 0, 10 + n, 0) for n in range(3)]
            both = list(zip(places, values, strict=True))
            ledger.intend(name, reader.incarnation(), 0, reader.end_offset(0), now_us, both)
        for value in values[:there]:
            writer.append(0, [value], now_us)
            writer.append(0, [b"another's"], now_us)
    assert folder.replay().startswith(f"replayed={3 - there} already={there}")
    assert folder.replay().startswith("replayed=0 already=3")
    with contextlib.closing(topic.open_reader()) as reader:
        end = reader.end_offset(0)
        found = [v.as_py() for batch in reader.read_range(0, 0, end) for v in batch.values]
    assert sorted(found) == sorted([*values, values[1], *[b"another's"] * there])
