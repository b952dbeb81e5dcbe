"""Balances: rows in against what became of them, as records that a shard reports again and again.

A record is a dict: ``stage`` (``source``, ``join`` or ``sampling``), ``shard``, ``clock_us`` (the in-band clock, null before
there is one), ``polled_us``, ``final`` (the input has ended), ``counts`` (name -> rows since the job began), of the join ``figures``.
Records are cumulative: the newest of each (stage, shard) counts, and their sum is the job's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from cuckooflow.transforms.in_band import NO_TIME_US

SOURCE, JOIN, SAMPLING = "source", "join", "sampling"

#: (stage, what came in, what it must equal the sum of).
EQUATIONS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (SOURCE, "impressions_read", ("impressions_rows", "impressions_refused")),
    (SOURCE, "actions_read", ("actions_rows", "actions_refused", "actions_of_other_types")),
    (JOIN, "impressions", ("examples", "impressions_waiting", "impressions_dead", "impressions_repeated")),
    (
        JOIN,
        "actions",
        ("used", "late", "actions_waiting", "unmatched", "actions_dead", "actions_repeated"),
    ),
    (SAMPLING, "examples", ("kept", "sampled_out")),
)


def balance_record(
    stage: str,
    shard: int,
    counts: Mapping[str, int],
    clock_us: int | None,
    polled_us: int,
    final: bool,
    figures: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """One record, ready to be written as JSON.

    Args:
        figures: of the shard as it now is, beside the counts: metrics by name, which add up over shards.
    """
    record = {
        "stage": stage,
        "shard": shard,
        "clock_us": None if clock_us == NO_TIME_US else clock_us,
        "polled_us": polled_us,
        "final": final,
        "counts": dict(counts),
    }
    return record if figures is None else record | {"figures": dict(figures)}


def totals(records: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """Stage -> name -> rows over all shards, from records in the order they were reported.

    >>> one = balance_record("sampling", 0, {"examples": 3, "kept": 1, "sampled_out": 2}, None, 0, False)
    >>> totals([one, one])
    {'sampling': {'examples': 3, 'kept': 1, 'sampled_out': 2}}
    """
    newest: dict[tuple[str, int], Mapping[str, int]] = {}
    for record in records:
        newest[record["stage"], record["shard"]] = record["counts"]
    sums: dict[str, dict[str, int]] = {}
    for (stage, _), counts in newest.items():
        stage_sums = sums.setdefault(stage, {})
        for name, count in counts.items():
            stage_sums[name] = stage_sums.get(name, 0) + count
    return sums


def balance_records(stage: str) -> str:
    """The counter of a stage's records."""
    return f"balance_{stage}_records"


def balance_figures(stage: str, records: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """A stage's gauges, by name, from the newest record of each shard; none where there is no record.

    >>> one = balance_record("sampling", 0, {"examples": 3, "kept": 1, "sampled_out": 2}, None, 0, False)
    >>> balance_figures("sampling", [one])["balance_sampling_sampled_out"]
    2
    """
    records = list(records)
    if not records:
        return {}
    sums = totals(records)
    figures = {f"balance_{stage}_{name}": rows for name, rows in sums[stage].items()}
    figures[f"balance_{stage}_imbalances"] = len(imbalances(sums))
    figures[f"balance_{stage}_shards"] = len({record["shard"] for record in records})
    for record in records:
        for name, value in record.get("figures", {}).items():
            figures[name] = figures.get(name, 0) + value
    return figures


def imbalances(sums: Mapping[str, Mapping[str, int]]) -> list[str]:
    """What does not add up in :func:`totals`, in words; empty when everything does.

    >>> imbalances({"sampling": {"examples": 3, "kept": 1, "sampled_out": 1}})
    ['sampling: expected examples (3) = kept (1) + sampled_out (1), which is 2']
    """
    faults = []
    for stage, whole, parts in EQUATIONS:
        if stage not in sums:
            continue
        counts = sums[stage]
        found = sum(counts.get(part, 0) for part in parts)
        if counts.get(whole, 0) != found:
            shown = " + ".join(f"{part} ({counts.get(part, 0)})" for part in parts)
            faults.append(f"{stage}: expected {whole} ({counts.get(whole, 0)}) = {shown}, which is {found}")
    return faults
