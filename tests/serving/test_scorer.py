"""The scorer over HTTP, as a client sees it: a real server on loopback."""

from __future__ import annotations

import json
import math
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from cuckooflow.errors import (
    BadRequest,
    LogError,
    LogLocked,
    NoSnapshot,
    ScorerOverloaded,
    ScorerUnavailable,
    SpecError,
)
from cuckooflow.logs.local_log import LocalLog, LocalLogWriter
from cuckooflow.serving.client import ScorerClient
from cuckooflow.serving.impressions import ImpressionOptions
from cuckooflow.serving.scorer import Scorer
from cuckooflow.serving.serve import ScorerServer, ServeOptions
from cuckooflow.serving.times import TimeFormat

Start = Callable[..., str]
PREDICT = "/v1/models/movies:predict"


def post(url: str, body: object, path: str = PREDICT) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(url + path, content=content, timeout=30, trust_env=False)


def get(url: str, path: str) -> httpx.Response:
    return httpx.get(url + path, timeout=30, trust_env=False)


def test_predictions_are_the_models_in_both_formats(publisher: Any, start: Start) -> None:
    publisher.set(ann=1.25, bob=-2.0, bias=0.5)
    publisher.publish()
    url = start()
    with ScorerClient(url, "movies") as client:
        assert client.wait_ready(60) == 1
        answer = client.predict([{"user_id": "ann"}, {"user_id": "bob"}, {"user_id": "nobody"}, {}])
    expected = [publisher.expected(1, user) for user in ("ann", "bob", "nobody", "")]
    assert answer.values == pytest.approx(expected, abs=1e-6)
    assert (answer.model_version, answer.request_id) == (1, None)
    rows = post(url, {"instances": [{"user_id": "ann"}, {"user_id": "bob"}]})
    columns = post(url, {"inputs": {"user_id": ["ann", "bob"]}, "signature_name": "serving_default"})
    assert rows.json()["predictions"] == columns.json()["outputs"] == answer.values[:2]
    assert rows.headers["X-Model-Version"] == "1"
    assert rows.headers["Content-Type"] == "application/json"


def test_several_labels_are_named(publisher: Any, start: Start) -> None:
    both = type(publisher)(publisher.folder, labels=("click", "like"))
    both.set(ann=0.75)
    both.publish()
    with ScorerClient(start(), "movies") as client:
        client.wait_ready(60)
        (scores,) = client.predict([{"user_id": "ann"}]).values
    assert scores == pytest.approx(dict.fromkeys(["click", "like"], both.expected(1, "ann")), abs=1e-6)


def test_the_correction_for_sampled_negatives_is_the_manifests(publisher: Any, start: Start) -> None:
    publisher.set(bias=0.3)
    publisher.publish(sampling_rate=0.1, correction="log_odds")
    with ScorerClient(start(), "movies") as client:
        client.wait_ready(60)
        (corrected,) = client.predict([{}]).values
        publisher.publish(sampling_rate=0.1, correction="weight")
        client.wait_ready(60, version=2)
        (weighted,) = client.predict([{}]).values
    assert math.log(corrected / (1 - corrected)) == pytest.approx(0.3 + math.log(0.1), abs=1e-5)
    assert math.log(weighted / (1 - weighted)) == pytest.approx(0.3, abs=1e-5)


def test_before_the_first_snapshot_it_answers_503_and_says_so(publisher: Any, start: Start) -> None:
    url = start()
    response = post(url, {"instances": [{}]})
    assert response.status_code == 503
    assert response.headers["Retry-After"] == "1"
    assert "wait for the trainer's first one" in response.json()["error"]
    status = get(url, "/v1/models/movies").json()["model_version_status"][0]
    assert (status["version"], status["state"]) == ("0", "LOADING")
    assert get(url, "/healthz").status_code == 200
    with ScorerClient(url, "movies") as client:
        with pytest.raises(NoSnapshot, match="wait for the trainer"):
            client.predict([{}])
        with pytest.raises(NoSnapshot, match="received version 0"):
            client.wait_ready(0)
        publisher.publish()
        assert client.wait_ready(60) == 1


@pytest.mark.parametrize(
    ("method", "path", "body", "code", "says"),
    [
        ("POST", PREDICT, b"{", 400, "expected a JSON object"),
        (
            "POST",
            PREDICT,
            b'{"instances": [{"user_id": 7}]}',
            400,
            "row 0, column 'user_id': expected string",
        ),
        ("POST", PREDICT, b'{"instances": [{"usr": "a"}]}', 400, "unknown columns 'usr'"),
        ("POST", PREDICT, b'{"instances": [{}], "time": "noon"}', 400, "time of row 0"),
        (
            "POST",
            PREDICT,
            b'{"instances": [{}], "request_id": 7}',
            400,
            "column 'request_id': expected string",
        ),
        ("POST", PREDICT, b'{"instances": [{}], "request_id": ["r"]}', 400, "expected string"),
        ("POST", PREDICT, b'{"instances": [{"time": -5}]}', 400, "time of row 0"),
        ("POST", PREDICT, b'{"instances": [{}], "log_impressions": true}', 400, "without an impressions log"),
        ("POST", PREDICT, b" " * 5_000, 413, "at most 4096 bytes"),
        ("POST", "/v1/models/books:predict", b"{}", 404, "serves 'movies', received 'books'"),
        ("GET", "/v1/models/books", b"", 404, "serves 'movies'"),
        ("GET", "/v1/models/books/snapshots", b"", 404, "serves 'movies'"),
        ("GET", "/v1/models/movies/snapshots?after=x", b"", 400, "a snapshot's number"),
        ("GET", "/nowhere", b"", 404, "GET /nowhere"),
        ("POST", "/v1/models/movies", b"", 405, "Method Not Allowed"),
    ],
)
def test_every_error_is_json_that_says_what_is_wrong(
    publisher: Any, start: Start, method: str, path: str, body: bytes, code: int, says: str
) -> None:
    publisher.publish()
    url = start(body_bytes_max=4096)
    with ScorerClient(url, "movies") as client:
        client.wait_ready(60)
    response = httpx.request(method, url + path, content=body, trust_env=False, timeout=30)
    assert response.status_code == code
    assert says in response.json()["error"]


def test_the_client_raises_the_named_errors(publisher: Any, start: Start) -> None:
    publisher.publish()
    url = start()
    with ScorerClient(url, "movies") as client:
        client.wait_ready(60)
        with pytest.raises(BadRequest, match="row 0, column 'age': expected float64, received 'old'"):
            client.predict([{"age": "old"}])
    with ScorerClient(url, "books") as client, pytest.raises(BadRequest, match="serves 'movies'"):
        client.predict([{}])
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with (
            ScorerClient(nobody, "movies") as client,
            pytest.raises(ScorerUnavailable, match="is the scorer up"),
        ):
            client.predict([{}])


def test_what_was_served_is_logged_as_it_was_served(publisher: Any, start: Start, tmp_path: Path) -> None:
    LocalLog.create(tmp_path / "impressions")
    publisher.set(ann=1.0)
    publisher.publish(columns={"user_id": "string", "item_id": "int64", "age": "float64"})
    url = start(impressions=ImpressionOptions(log=tmp_path / "impressions"))
    with ScorerClient(url, "movies") as client:
        client.wait_ready(60)
        before = time.time()
        client.predict([{"user_id": "ann"}])  # not asked for, so not logged
        first = client.predict(
            [{"user_id": "ann", "item_id": 1, "age": None}, {"user_id": "zoë", "item_id": 2}],
            log_impressions=True,
            request_id="r-1",
            time=1_650_844_800,
        )
        second = client.predict([{"item_id": 3}, {"item_id": 4, "time": 5.5}], log_impressions=True)
    assert first.request_id == "r-1"
    batch = LocalLog.open(tmp_path / "impressions").read(0, 0)
    one, two, three, four = [json.loads(value) for value in batch.values.to_pylist()]
    assert one == {
        "request_id": "r-1", "time": 1_650_844_800, "user_id": "ann", "item_id": 1, "model_version": 1
    }  # fmt: skip
    assert (two["user_id"], two["time"]) == ("zoë", 1_650_844_800)
    assert second.request_id is not None and len(second.request_id) == 32
    assert three["request_id"] == four["request_id"] == second.request_id
    assert before <= three["time"] <= time.time()
    assert four["time"] == 5.5
    assert "cuckooflow_logged_rows_total 4.0" in get(url, "/metrics").text


def test_request_ids_are_of_the_type_that_the_log_has(publisher: Any, start: Start, tmp_path: Path) -> None:
    LocalLog.create(tmp_path / "impressions")
    publisher.publish(columns={"user_id": "string", "query": "int64"})
    options = ImpressionOptions(log=tmp_path / "impressions", request_column="query")
    with ScorerClient(start(impressions=options), "movies") as client:
        client.wait_ready(60)
        assert client.predict([{}], log_impressions=True, request_id=7).request_id == 7
        made = client.predict([{}], log_impressions=True).request_id
        assert isinstance(made, int)
        with pytest.raises(BadRequest, match="expected int64"):
            client.predict([{}], log_impressions=True, request_id="seven")
    rows = [json.loads(v) for v in LocalLog.open(tmp_path / "impressions").read(0, 0).values.to_pylist()]
    assert [row["query"] for row in rows] == [7, made]


def test_a_log_that_another_writes_is_told_and_tried_again(
    publisher: Any, start: Start, tmp_path: Path
) -> None:
    LocalLog.create(tmp_path / "impressions", partitions=2)
    publisher.publish()
    url = start(impressions=ImpressionOptions(log=tmp_path / "impressions", partition=1))
    with ScorerClient(url, "movies") as client:
        client.wait_ready(60)
        with LocalLogWriter(tmp_path / "impressions"):
            with pytest.raises(LogLocked, match="only writer"):
                client.predict([{}], log_impressions=True)
            assert client.predict([{}]).values == [0.5]
        client.predict([{}], log_impressions=True)
        # The other partition stays free for another writer.
        LocalLogWriter(tmp_path / "impressions", [0]).close()
    assert LocalLog.open(tmp_path / "impressions").end_offset(1) == 1


def test_an_impression_that_no_log_can_hold_is_refused(publisher: Any, start: Start, tmp_path: Path) -> None:
    LocalLog.create(tmp_path / "impressions")
    publisher.publish(columns={})
    url = start(impressions=ImpressionOptions(log=tmp_path / "impressions"))
    with ScorerClient(url, "movies") as client:
        client.wait_ready(60)
        for note in (b'"\\ud800"', b"1e999"):
            body = b'{"instances": [{"note": ' + note + b'}], "log_impressions": true}'
            assert post(url, body).status_code == 400
    assert LocalLog.open(tmp_path / "impressions").end_offset(0) == 0


def test_the_log_is_missing(publisher: Any, start: Start, tmp_path: Path) -> None:
    publisher.publish()
    with ScorerClient(start(impressions=ImpressionOptions(log=tmp_path / "nolog")), "movies") as client:
        client.wait_ready(60)
        with pytest.raises(LogError, match="expected a log at"):
            client.predict([{}], log_impressions=True)


def test_times_are_written_as_the_log_reads_them(publisher: Any, start: Start, tmp_path: Path) -> None:
    LocalLog.create(tmp_path / "impressions")
    publisher.publish()
    options = ImpressionOptions(
        log=tmp_path / "impressions", time_column="shown_at", time_format=TimeFormat("iso", "Asia/Shanghai")
    )
    with ScorerClient(start(impressions=options), "movies") as client:
        client.wait_ready(60)
        client.predict([{}], log_impressions=True, time="2022-04-25T08:00:00")
        client.predict([{}], log_impressions=True)
        with pytest.raises(BadRequest, match="time of row 0"):
            client.predict([{}], log_impressions=True, time=5)
    rows = [json.loads(v) for v in LocalLog.open(tmp_path / "impressions").read(0, 0).values.to_pylist()]
    assert rows[0]["shown_at"] == "2022-04-25T08:00:00"
    assert rows[1]["shown_at"].endswith("+00:00")


def test_answers_while_snapshots_are_applied_are_each_of_one_version(publisher: Any, start: Start) -> None:
    """Row and bias move together, so an answer that mixed two versions would fit neither."""
    publisher.set(ann=0.0, bias=0.0)
    publisher.publish()
    url = start(poll_interval_s=0.001)
    answers: list[tuple[int, float]] = []
    failures: list[BaseException] = []
    done = threading.Event()

    def ask() -> None:
        try:
            with ScorerClient(url, "movies", timeout_s=60) as client:
                while not done.is_set():
                    got = client.predict([{"user_id": "ann"}])
                    answers.append((got.model_version, got.values[0]))
        except BaseException as error:
            failures.append(error)

    with ScorerClient(url, "movies") as client:
        client.wait_ready(60)
        askers = [threading.Thread(target=ask) for _ in range(3)]
        for asker in askers:
            asker.start()
        for n in range(1, 61):
            publisher.set(ann=0.03 * n, bias=0.02 * n)
            last = publisher.publish(full=n % 20 == 0).sequence
        client.wait_ready(60, version=last)
        answered = len(answers)
        deadline = time.monotonic() + 60
        while len(answers) < answered + 10 and not failures:
            assert time.monotonic() < deadline
        done.set()
        for asker in askers:
            asker.join()
    assert failures == []
    versions = [version for version, _ in answers]
    assert len(set(versions)) > 3, "no snapshot came while requests were answered; the test shows nothing"
    expected = [publisher.expected(version, "ann") for version in versions]
    np.testing.assert_allclose([score for _, score in answers], expected, atol=1e-6)


def test_one_request_too_many_is_refused_and_the_others_answered(
    publisher: Any, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher.publish()
    url = start(requests_max=1)
    release, entered = threading.Event(), threading.Event()
    real = Scorer.predict

    def held(self: Scorer, body: bytes) -> object:
        entered.set()
        assert release.wait(60)
        return real(self, body)

    answers: list[httpx.Response] = []
    with ScorerClient(url, "movies") as client:
        client.wait_ready(60)
        monkeypatch.setattr(Scorer, "predict", held)
        asker = threading.Thread(target=lambda: answers.append(post(url, {"instances": [{}]})))
        asker.start()
        try:
            assert entered.wait(60)
            with pytest.raises(ScorerOverloaded, match="at most 1 requests under way"):
                client.predict([{}])
            assert client.version() == 1  # only predictions are bounded
        finally:
            release.set()
            asker.join()
        assert answers[0].status_code == 200
        assert client.predict([{}]).values == [0.5]


def test_a_fault_of_the_scorer_is_500_and_told_without_details(
    publisher: Any, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> object:
        raise RuntimeError("secret")

    publisher.publish()
    with ScorerClient(start(), "movies") as client:
        client.wait_ready(60)
        monkeypatch.setattr(Scorer, "predict", fail)
        with pytest.raises(ScorerUnavailable, match="RuntimeError") as raised:
            client.predict([{}])
        assert "secret" not in str(raised.value)
        monkeypatch.undo()
        assert client.predict([{}]).values == [0.5]


def test_status_history_and_metrics(publisher: Any, start: Start) -> None:
    now = time.time_ns() // 1_000
    publisher.set(ann=1.0)
    publisher.publish(
        arrivals_us=(now - 2_000_000, now - 1_000_000), event_time_us=5, metrics={"like/auc": 0.7}
    )
    url = start()
    with ScorerClient(url, "movies") as client:
        client.wait_ready(60)
        publisher.set(bob=2.0)
        publisher.publish()
        client.wait_ready(60, version=2)
        client.predict([{}, {}])
        status = client.status()
        first, second = client.snapshots()
        assert client.snapshots(after=1) == [second]
    assert status["model_version_status"][0]["state"] == "AVAILABLE"
    assert status["snapshot"]["version"] == ["first", 2]
    assert status["snapshot"]["rows"] == {"linear": 1, "_count": 1}
    assert status["freshness_s"]["samples"] == 2
    assert status["freshness_s"]["p50"] >= 1.5
    assert (first["sequence"], first["kind"], second["kind"]) == (1, "full", "delta")
    assert (first["event_time_us"], first["metrics"]) == (5, {"like/auc": 0.7})
    assert first["marks"] == {"examples": {"0": [1, 0]}}
    assert second["freshness_s"] == {"samples": 0, "p50": None, "p90": None}
    text = get(url, "/metrics").text
    for line in (
        "cuckooflow_snapshots_applied_total 2.0",
        "cuckooflow_snapshot_sequence 2.0",
        'cuckooflow_table_rows{table="linear"} 2.0',
        'cuckooflow_table_bytes{table="linear"} ',
        'cuckooflow_predict_requests_total{code="200"} 1.0',
        "cuckooflow_predict_rows_total 2.0",
        "cuckooflow_freshness_seconds_count 2.0",
    ):
        assert line in text


@pytest.mark.parametrize(
    "listen", ["0.0.0.0:0", "8.8.8.8:80", "[::]:0", "example.org:80", "127.0.0.1", "127.0.0.1:99999", ":80"]
)
def test_only_loopback_is_listened_on(tmp_path: Path, listen: str) -> None:
    with pytest.raises(SpecError, match="expected a loopback address and a port"):
        ScorerServer(ServeOptions(name="m", snapshots=tmp_path, listen=listen))


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(SpecError, match="expected a free port"):
            listen = f"127.0.0.1:{taken.getsockname()[1]}"
            ScorerServer(ServeOptions(name="m", snapshots=tmp_path, listen=listen))
