"""What must hold after a demo run: the balances, the outcomes that its maker expects, the counting table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cuckooflow.embedding_store.api import Ids
from cuckooflow.pipelines.demo.expected import Outcomes
from cuckooflow.pipelines.demo.progress import Observed

IMPRESSIONS, ACTIONS, SAMPLING = "impressions balance", "actions balance", "sampling balance"
OUTCOMES = "outcomes as expected"
COUNTING = "counting table equals the examples log"
FIRST_SERVED = "first snapshot served before half"
CAME_BACK = "what was killed came back"
SETTLED = "everything worked off after the replay"

#: What ``balance_ok`` stands for.
BALANCES = (IMPRESSIONS, ACTIONS, SAMPLING, OUTCOMES)


@dataclass(frozen=True)
class Check:
    """One thing that must hold: what it is, whether it does, and the figures it stands on."""

    name: str
    holds: bool
    detail: str


def check_balances(observed: Observed, lines: Mapping[str, int]) -> list[Check]:
    """Every line of the input logs, and every example, is in exactly one place.

    Args:
        lines: log -> lines that were appended, counted by who appended them. Dead rows are counted in
            the dead letter log, not by the join's own word.
    """
    joined = observed.joined
    found = []
    for name, log, parts in (
        (IMPRESSIONS, "impressions", ("examples", "impressions_waiting", "impressions_repeated")),
        (ACTIONS, "actions", ("used", "late", "actions_waiting", "unmatched", "actions_repeated")),
    ):
        counts = {part.removeprefix(f"{log}_"): joined.get(f"join.{part}", 0) for part in parts}
        counts["dead"] = observed.dead.get(log, 0)
        found.append(_sum_check(name, f"{log} in", lines[log], counts))
    counts = {name: joined.get(f"sampling.{name}", 0) for name in ("kept", "sampled_out")}
    found.append(_sum_check(SAMPLING, "examples", joined.get("sampling.examples", 0), counts))
    return found


def check_outcomes(observed: Observed, expected: Outcomes) -> Check:
    """The join's counts against those of who made the events.

    What the clock has not decided yet may be counted as waiting or as what it will be.
    """
    joined = observed.joined
    got = {
        "examples": joined.get("join.examples", 0),
        "impressions_repeated": joined.get("join.impressions_repeated", 0),
        "impressions_dead": observed.dead.get("impressions", 0),
        "used": joined.get("join.used", 0),
        "late": joined.get("join.late", 0),
        "unmatched": joined.get("join.unmatched", 0),
        "actions_repeated": joined.get("join.actions_repeated", 0),
        "actions_dead": observed.dead.get("actions", 0),
    }
    wrong = []
    for name, count in got.items():
        most = getattr(expected, name)
        least = most - expected.open.get(name, 0)
        if not least <= count <= most:
            wanted = f"{most:,}" if least == most else f"{least:,} to {most:,}"
            wrong.append(f"{name}: expected {wanted}, found {count:,}")
    detail = "; ".join(wrong) or "; ".join(f"{name} {count:,}" for name, count in got.items())
    return Check(OUTCOMES, not wrong, detail)


def check_counting(
    counted: tuple[Ids, npt.NDArray[np.int64]], stored: tuple[Ids, npt.NDArray[np.float32]]
) -> Check:
    """The store's counts against a count of the examples log: both (n,) ids ascending and (n,) counts."""
    ids, counts = counted
    stored_ids, stored_counts = stored
    order = np.argsort(stored_ids)
    stored_ids, stored_counts = stored_ids[order], stored_counts[order]
    if len(ids) != len(stored_ids) or not (ids == stored_ids).all():
        missing = len(np.setdiff1d(ids, stored_ids))
        detail = f"expected {len(ids):,} feature ids, found {len(stored_ids):,}; {missing:,} are missing"
        return Check(COUNTING, False, detail)
    differing = int(np.sum(counts != stored_counts.astype(np.int64)))
    if differing:
        detail = (
            f"{differing:,} of {len(ids):,} feature ids: expected {int(counts.sum()):,} occurrences in all, "
        )
        detail += f"found {int(stored_counts.sum(dtype=np.float64)):,}"
        return Check(COUNTING, False, detail)
    return Check(
        COUNTING, len(ids) > 0, f"{len(ids):,} feature ids, {int(counts.sum()):,} occurrences, all equal"
    )


def check_first_served(fraction: float) -> Check:
    """The system is live: it serves while the replay goes on."""
    return Check(FIRST_SERVED, fraction < 0.5, f"after {fraction:.1%} of the replay")


def check_came_back(planned: Sequence[str], restarts: Mapping[str, int]) -> Check:
    """Every process that was to be killed -9 was, and was started again."""
    detail = "; ".join(f"{role} restarts {restarts.get(role, 0)}" for role in planned)
    return Check(CAME_BACK, all(restarts.get(role, 0) for role in planned), detail)


def check_settled(settled: bool, within_s: float) -> Check:
    """The join has decided what it could and the trainer has trained all examples."""
    return Check(SETTLED, settled, f"{'within' if settled else 'not within'} {within_s:g} s")


def _sum_check(name: str, whole_name: str, whole: int, parts: Mapping[str, int]) -> Check:
    total = sum(parts.values())
    shown = " + ".join(f"{part} {count:,}" for part, count in parts.items())
    detail = f"{whole_name} {whole:,} = {shown}" + ("" if total == whole else f", which is {total:,}")
    return Check(name, total == whole and whole > 0, detail)
