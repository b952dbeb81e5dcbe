"""``cuckooflow job status``: how a job on Flink does, by Flink's REST alone."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console, Group
from rich.table import Table

from cuckooflow.runners.flink_metrics import job_metrics
from cuckooflow.runners.flink_rest import FlinkRest
from cuckooflow.transforms.balances import EQUATIONS, JOIN, SAMPLING, SOURCE
from cuckooflow.transforms.in_band import LOG_NAMES
from cuckooflow.transforms.metric_names import NAMESPACE

_HEADINGS = {
    SOURCE: "source: rows, since the job began",
    JOIN: "join: rows, since the job began",
    SAMPLING: "sampling: rows, since the job began",
}


@dataclass(frozen=True)
class JobStatus:
    """What Flink says of a job.

    Attributes:
        parallelism: the largest of its stages.
        at_work: every subtask runs.
        uptime_s: since its last start or restart.
        restarts: since it was submitted.
        checkpoint_age_s: of the newest completed checkpoint or savepoint; None: there is none.
        failed_checkpoints: also those that were due before every task ran.
        metrics: see :mod:`~cuckooflow.transforms.metric_names`.
    """

    id: str
    name: str
    state: str
    parallelism: int
    at_work: bool
    uptime_s: float
    restarts: int
    checkpoint_age_s: float | None
    checkpoint_bytes: int
    failed_checkpoints: int
    metrics: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def read_status(rest: FlinkRest, name: str) -> JobStatus:
    """The status of a job, by its id or name.

    Raises:
        FlinkJobNotFound: there is none.
        FlinkUnavailable: nothing answers.
    """
    job = rest.job(name)
    metrics = {} if job.ended else job_metrics(rest, job.id, NAMESPACE)
    now = rest.get(f"/jobs/{job.id}")
    asked = rest.get(f"/jobs/{job.id}/metrics?get=numRestarts")
    checkpoints = rest.checkpoints(job.id)
    newest = checkpoints.newest
    return JobStatus(
        id=job.id,
        name=job.name,
        state=job.state,
        parallelism=max((vertex["parallelism"] for vertex in now["vertices"]), default=0),
        at_work=job.at_work and not job.ended,
        uptime_s=(now["now"] - now["timestamps"]["RUNNING"]) / 1e3 if now["state"] == "RUNNING" else 0.0,
        restarts=sum(int(metric["value"]) for metric in asked),
        checkpoint_age_s=None if newest is None else time.time() - newest.completed_ms / 1e3,
        checkpoint_bytes=0 if newest is None else newest.size_bytes,
        failed_checkpoints=checkpoints.failed,
        metrics=metrics,
    )


def print_status(status: JobStatus, console: Console) -> None:
    """For an operator: what is wrong stands first, and in red."""
    checkpoint = (
        "none yet"
        if status.checkpoint_age_s is None
        else f"{span(status.checkpoint_age_s)} old, {size(status.checkpoint_bytes)}"
    )
    state = status.state if status.at_work or status.state != "RUNNING" else "RUNNING, tasks are starting"
    console.print(f"{status.name}  {status.id}")
    for name, value in {
        "state": f"[{'green' if status.at_work else 'red'}]{state}[/]",
        "up": span(status.uptime_s),
        "parallelism": str(status.parallelism),
        "restarts": str(status.restarts),
        "checkpoint": f"{checkpoint}; {status.failed_checkpoints} failed",
    }.items():
        console.print(f"  {name:12} {value}")
    if not status.metrics:
        console.print("\nno metrics yet: they come a few seconds after every task runs")
        return
    if not status.at_work:
        console.print("\n[red]what follows is from before it stopped[/]")
    console.print(
        Group(*_sources(status.metrics), *_balances(status.metrics), "", _since_start(status.metrics))
    )


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", title_justify="left")
    for n, column in enumerate(columns):
        table.add_column(column, justify="left" if n == 0 else "right", no_wrap=True)
    return table


def _sources(metrics: dict[str, int]) -> list[Table | str]:
    """Each log, and each of its partitions that is behind."""
    table = _table(
        "log", "lag, messages", "behind the clock", "idle", "paused", "no event yet", "broker away"
    )
    found = False
    for log in LOG_NAMES:
        of_log = f"source_{log}"
        if f"{of_log}_idle_partitions" not in metrics:
            continue
        found = True
        away_s = metrics[f"{of_log}_unavailable_s"]
        table.add_row(
            log,
            _number(metrics.get(f"{of_log}_lag_messages")),
            _behind(metrics.get(f"{of_log}_watermark_lag_ms"), metrics.get(f"{of_log}_oldest_partition")),
            *(_number(metrics.get(f"{of_log}_{what}_partitions")) for what in ("idle", "paused", "timeless")),
            f"[red]{span(away_s)}[/]" if away_s else "-",
        )
    if not found:
        return []
    clock = metrics.get("join_clock_lag_ms")
    said = "the join has no clock yet" if clock is None else f"the join's clock is {span(clock / 1e3)} behind"
    return ["", table, said]


def _balances(metrics: dict[str, int]) -> list[Table | str]:
    parts: list[Table | str] = []
    for stage, heading in _HEADINGS.items():
        lines = []
        for of_stage, whole, terms in EQUATIONS:
            name = f"balance_{stage}_{whole}"
            if of_stage != stage or name not in metrics:
                continue
            sums = {term: metrics.get(f"balance_{stage}_{term}", 0) for term in terms}
            shown = " + ".join(f"{_short(term, whole)} {rows:,}" for term, rows in sums.items())
            right = sum(sums.values()) == metrics[name]
            lines.append(
                f"  {whole} {metrics[name]:,} = {shown}{'' if right else '  [red]does not add up[/]'}"
            )
        if lines:
            parts += ["", f"[dim]{heading}[/]", *lines]
    return parts


def _since_start(metrics: dict[str, int]) -> Table:
    table = _table("since the last start", "")
    ticks = metrics.get("join_ticks", 0)
    rows: dict[str, str] = {
        "polls of the logs": _number(metrics.get("source_polls")),
        "examples written": _number(metrics.get("examples_rows_written")),
        "dead letters": _number(sum(v for n, v in metrics.items() if n.startswith("dead_letters_"))),
        **{
            f"  {name.removeprefix('dead_letters_')}": _number(rows)
            for name, rows in sorted(metrics.items())
            if name.startswith("dead_letters_")
        },
        "ticks": _number(ticks),
        "  of so long each": f"{metrics.get('join_tick_us', 0) / ticks / 1e3:.1f} ms" if ticks else "-",
        "hot hits": _number(metrics.get("join_hot_hits")),
        "cold reads": _number(metrics.get("join_cold_reads")),
        "  past one a tick": _number(metrics.get("join_cold_reads_beyond_one_a_tick")),
        "memories rebuilt": _number(metrics.get("join_memory_rebuilt")),
        "elements held": _number(metrics.get("join_elements_held")),
        "hot memory": size(metrics.get("join_hot_bytes", 0)),
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _short(term: str, whole: str) -> str:
    return term.removeprefix(f"{whole}_").removeprefix(f"{whole.removesuffix('_read')}_").replace("_", " ")


def _behind(lag_ms: int | None, partition: int | None) -> str:
    return "-" if lag_ms is None else f"{span(lag_ms / 1e3)} (partition {partition})"


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def size(count: int) -> str:
    """Bytes, as a person reads them.

    >>> size(999), size(25_000), size(3 << 30)
    ('999 B', '25.0 kB', '3.2 GB')
    """
    value, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1_000 or unit == "TB":
            break
        value /= 1_000
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def span(seconds: float) -> str:
    """A duration, as a person reads it.

    >>> span(0.25), span(59), span(3_700), span(100_000), span(1e9)
    ('0.2 s', '59 s', '62 min', '28 h', '11,574 days')
    """
    if abs(seconds) < 10:
        return f"{seconds:.1f} s"
    for unit, length_s, until_s in (("s", 1, 100), ("min", 60, 2 * 3_600), ("h", 3_600, 2 * 86_400)):
        if abs(seconds) < until_s:
            return f"{seconds / length_s:.0f} {unit}"
    return f"{seconds / 86_400:,.0f} days"
