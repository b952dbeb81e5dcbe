"""Dead letters of a job whose topics lie behind TLS and a password: shown, and put back, by the command line."""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cuckooflow.logs.address import KafkaAddress
from cuckooflow.pipelines.spec_file import load_spec
from cuckooflow.transforms.dead_letters import DEAD_LETTER_SCHEMA, to_json_lines
from tests.secured_broker import PASSWORD, USER, secured

__all__ = ["secured"]

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
VARIABLE = "CUCKOOFLOW_TEST_KAFKA_PASSWORD"


def topic(bootstrap: str, name: str, library: str, password: str, ca: Path) -> str:
    """A log of the job spec, its client let in by a reference to the password."""
    client = {
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "PLAIN",
        "sasl.username": USER,
        "sasl.password": password,
        "ssl.ca.location": str(ca),
    }
    fields = {"bootstrap": bootstrap, "topic": name, "partitions": 2, "library": library, "client": client}
    return json.dumps({"kafka": fields})


@pytest.mark.parametrize("library", ["kafka-python", "confluent-kafka"])
@pytest.mark.parametrize("place", ["file", pytest.param("env", marks=pytest.mark.deep)])
def test_letters_go_back_once_to_a_topic_behind_tls_and_a_password(
    secured: tuple[str, Path],
    films: Any,
    cli: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    library: str,
    place: str,
) -> None:
    bootstrap, folder = secured
    monkeypatch.setenv(VARIABLE, PASSWORD)
    password = f"${{env:{VARIABLE}}}" if place == "env" else f"${{file:{folder / 'password'}}}"
    mark = uuid.uuid4().hex[:8]
    text = films.spec.read_text()
    for old, name, more in (
        ("{path: logs/impressions, partitions: 2}", f"shown-{mark}", ""),
        ("{path: logs/actions}", f"acted-{mark}", f"\n  dead_letters: DEAD-{mark}"),
    ):
        assert old in text
        log = topic(bootstrap, name, library, password, folder / "ca.pem")
        dead = topic(bootstrap, f"dead-{mark}", library, password, folder / "ca.pem")
        text = text.replace(old, log + more.replace(f"DEAD-{mark}", dead), 1)
    films.spec.write_text(text)
    job = load_spec(films.spec)
    shown, acted, dead_letters = (
        job.address(log) for log in (job.logs.impressions, job.logs.actions, job.logs.dead_letters)
    )
    values = [b'{"n": 0}', b"\xff", b'{"n": 2}']
    letters = [
        {
            "log": shown.name,
            "partition": n % 2,
            "offset": 10 + n,
            "row": 0,
            "reason": "malformed",
            "detail": "d",
            "value": value,
            "append": 1_000_000,
        }
        for n, value in enumerate(values)
    ]
    for address in (shown, acted, dead_letters):
        assert isinstance(address, KafkaAddress)
        address.create_missing().close()
    with contextlib.closing(dead_letters.open_writer()) as writer:
        batch = pa.RecordBatch.from_pylist(letters, schema=DEAD_LETTER_SCHEMA)
        writer.append(0, to_json_lines(batch), time.time_ns() // 1_000)
    listed = cli("dlq", "show", films.spec)
    assert listed.returncode == 0, listed.stderr
    assert f"3 {shown.name} malformed" in listed.stdout
    first = cli("dlq", "replay", films.spec)
    assert "replayed=3 already=0" in first.stdout, first.stderr
    again = cli("dlq", "replay", films.spec)
    assert "replayed=0 already=3" in again.stdout, again.stderr
    with contextlib.closing(shown.open_reader()) as reader:
        found = {
            partition: [
                value.as_py()
                for part in reader.read_range(partition, 0, reader.end_offset(partition))
                for value in part.values
            ]
            for partition in reader.partitions()
        }
    assert found == {0: [values[0], values[2]], 1: [values[1]]}
    ledger = (job.dir / "dlq" / "replays.jsonl").read_text()
    everything = ledger + "".join(run.stdout + run.stderr for run in (listed, first, again))
    assert PASSWORD not in everything


def test_who_is_not_let_in_puts_nothing_back(
    secured: tuple[str, Path], films: Any, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    bootstrap, folder = secured
    monkeypatch.setenv(VARIABLE, "wrong-password")
    name = f"shown-{uuid.uuid4().hex[:8]}"
    log = topic(bootstrap, name, "kafka-python", f"${{env:{VARIABLE}}}", folder / "ca.pem")
    text = films.spec.read_text().replace("{path: logs/impressions, partitions: 2}", log, 1)
    films.spec.write_text(text)
    films.job.address(films.job.logs.actions).create_missing().close()
    films.job.address(films.job.logs.dead_letters).create_missing("lines").close()
    refused = cli("dlq", "replay", films.spec)
    assert refused.returncode == 1
    assert "let in" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert "wrong-password" not in refused.stdout + refused.stderr
    monkeypatch.delenv(VARIABLE)
    missing = cli("dlq", "replay", films.spec)
    assert missing.returncode == 2
    assert VARIABLE in missing.stderr
