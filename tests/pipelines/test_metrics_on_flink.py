"""The join's metrics on a real Flink: in its REST, in the TaskManager's Prometheus reporter, and in `job status`."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cuckooflow.logs.local_log import LocalLogWriter
from cuckooflow.runners.cluster import LocalCluster
from cuckooflow.runners.flink_rest import FlinkRest
from cuckooflow.transforms.metric_names import METRICS, TRAINING_METRICS, known, pattern

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.deep, pytest.mark.timeout(400)]

REQUESTS = 200
START_MS = 1_767_225_600_000
DAY_MS = 86_400_000
#: For a job until its first rows: Flink, a worker process and its imports on a busy machine.
BOUND_S = 180
#: Of the trainer and its reader, and of inputs that are files.
NOT_OF_THE_JOIN = {
    "examples_repeats_dropped",
    "examples_skipped",
    "source_{log}_lag_files",
    *(metric.name for metric in TRAINING_METRICS),
}


@pytest.fixture
def running(films: Any, cli: Callable[..., Any], flink: LocalCluster) -> Iterator[str]:
    """The name of a films join on the shared cluster, at parallelism 2, with a refused message in its logs."""
    films.make_logs()
    films.append(*films.events(REQUESTS))
    with LocalLogWriter(films.job.path(films.job.logs.impressions.path), [0]) as writer:
        writer.append(0, [b"broken"], START_MS * 1_000)
    films.close_windows(START_MS + DAY_MS // 2)
    words = ("run", "join", films.spec, "--runner", "flink", "--detach", "--parallelism=2")
    done = cli(*words, "--checkpointing_interval=1000", "--cluster", flink.folder)
    assert done.returncode == 0, done.stderr[-4000:]
    name = f"{films.job.name}-join"
    yield name
    url = flink.addresses().flink_rest
    assert url is not None
    rest = FlinkRest(url)
    for job in rest.jobs():
        if job.name == name and not job.ended:  # others share the cluster
            rest.cancel(job.id)


def test_the_operator_sees_the_balances_and_so_does_prometheus(
    films: Any,
    running: str,
    cli: Callable[..., Any],
    flink: LocalCluster,
    wait_for: Callable[..., None],
    scraped: Callable[[str], list[Any]],
    alert_metrics: dict[str, set[str]],
) -> None:
    seen: dict[str, Any] = {}
    impressions = 4 * REQUESTS + 2  # with the two that close windows

    def shown() -> bool:
        done = cli("job", "status", running, "--json", "--cluster", flink.folder)
        assert done.returncode == 0, done.stderr[-4000:]
        seen.update(json.loads(done.stdout))
        written = seen["metrics"].get("balance_sampling_kept", 0)
        return written == 4 * REQUESTS and seen["checkpoint_age_s"] is not None

    wait_for(shown, "every example in the balances", BOUND_S)
    metrics = seen["metrics"]
    assert (seen["state"], seen["parallelism"], seen["restarts"]) == ("RUNNING", 2, 0)
    assert metrics["balance_join_impressions"] == metrics["source_impressions_rows"] == impressions
    assert metrics["balance_join_examples"] == metrics["examples_rows_written"] == 4 * REQUESTS
    assert metrics["balance_join_impressions_waiting"] == 2
    assert metrics["balance_join_shards"] == films.job.join.num_shards
    assert metrics["dead_letters_malformed"] == metrics["balance_source_impressions_refused"] == 1
    assert metrics["source_impressions_partition_1_lag_messages"] == 0
    assert metrics["join_memory_rebuilt"] == 0

    text = cli("job", "status", running, "--cluster", flink.folder).stdout
    assert (
        f"impressions {impressions:,} = examples {4 * REQUESTS:,} + waiting 2 + dead 0 + repeated 0" in text
    )
    assert re.search(r"malformed +1\n", text)
    assert "does not add up" not in text

    addresses = {part.name: part.address for part in flink.status()}
    pages = [addresses["taskmanager"], f"127.0.0.1:{_port(flink, 'jobmanager-metrics')}/metrics"]
    samples = [
        s
        for page in pages
        for s in scraped(_text(page))
        if s.name.startswith("flink_j")
        or (s.name.startswith("cuckooflow_") and s.labels["job_name"] == "films_join")  # others run beside it
    ]
    by_name: dict[str, float] = {}
    for sample in samples:
        by_name[sample.name] = by_name.get(sample.name, 0) + sample.value
    assert by_name["cuckooflow_balance_join_examples"] == 4 * REQUESTS
    assert by_name["cuckooflow_join_examples_rows"] == 4 * REQUESTS
    assert by_name["cuckooflow_dead_letters"] == 1
    assert {
        s.labels["partition"] for s in samples if s.name == "cuckooflow_source_partition_lag_messages"
    } == {"0", "1"}
    assert {
        alert: names - by_name.keys() for alert, names in alert_metrics.items() if names - by_name.keys()
    } == {}

    # The names module and the running job agree, both ways.
    assert {name for name in metrics if known(name) is None} == set()
    unseen = {m.name for m in METRICS if not any(pattern(m).fullmatch(name) for name in metrics)}
    assert unseen == NOT_OF_THE_JOIN

    cli("job", "stop", running, "--without-savepoint", "--cluster", flink.folder)
    done = cli("job", "status", running, "--json", "--cluster", flink.folder)
    assert done.returncode == 1
    assert json.loads(done.stdout)["state"] == "CANCELED"


def _port(flink: LocalCluster, name: str) -> int:
    return int(json.loads((flink.folder / "cluster.json").read_text())["ports"][name])


def _text(address: str | None) -> str:
    with urllib.request.urlopen(f"http://{address}", timeout=30) as page:
        return str(page.read().decode())
