"""Claim: the embedding store is faster and smaller than its peers, measured beside them in one run.

    python -m benchmarks.store --json          10 million rows, some minutes
    python -m benchmarks.store --quick --json  1 million rows, under 45 s, the same keys

Uniformly random lookups and Adagrad pushes of 32-float rows, far more than a cache holds, in batches,
through the store's public verbs; libcuckoo, a flat map and a dense gather take turns with it on the
same threads, compiled with the same options. See the modules beside this one for each figure. A peer
that cannot be had is named with a reason, and its figure is null. The last line is JSON:

- lookup_vs_libcuckoo, lookup_vs_gather: lookups/s on 1 thread as a multiple of theirs;
- threads2_scaling: lookups/s on 2 threads as a multiple of those on 1;
- push_vs_peer: pushes/s of rows as a multiple of the faster of libcuckoo's update and TFRA's upsert;
- index_bytes_per_row: when the index is fullest; growth_worst_vs_median: of single pushes of new rows
  while the table grows tenfold;
- flight_vs_echo: round trip of 10 thousand rows as a multiple of a bare exchange of the same bytes;
  flight_vs_redis: rows/s as a multiple of Redis's MGET;
- checkpoint_vs_disk: bandwidth of checkpoint or restore, whichever is worse, as a share of the disk's;
- delta_size_ratio: a delta of 10 thousand touched rows as a multiple of the same of a tenth of the rows.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.store_disk import bandwidth, delta_seconds
from benchmarks.store_peers import CACHE, NativePeers, PeerMissing, redis_command, tfra_rates
from benchmarks.store_server import ASKED, round_trips
from benchmarks.store_table import (
    Pusher,
    Workload,
    growth,
    lookups_and_pushes,
    new_store,
    same_values,
    store_config,
)
from cuckooflow.embedding_store.checkpoint_chain import CheckpointPolicy
from cuckooflow.embedding_store.store import EmbeddedStore

ROWS = 10_000_000
QUICK_ROWS = 1_000_000
TOUCHED = 10_000

Say = Callable[[str], None]


def measure(rows: int, batch: int, seconds: float, repeats: int, tfra: bool, say: Say) -> dict[str, Any]:
    """Every figure of the claim."""
    work = Workload(rows, batch, seconds)
    found: dict[str, Any] = {}
    peers = _native_peers(say)
    with tempfile.TemporaryDirectory(dir=_scratch()) as folder:
        data = Path(folder)
        # Full ones only: an incremental checkpoint would be compared with the disk's time for all rows.
        policy = CheckpointPolicy(incrementals_max=0)
        pusher = Pusher(EmbeddedStore(store_config(), data, policy=policy))
        pusher.fill(0, rows)
        rates = lookups_and_pushes(pusher, peers, work)
        for figure, rate in _tfra(work, tfra, say).items():
            rates[figure]["TFRA"] = rate
        for figure, of in rates.items():
            shown = ", ".join(f"{name} {rate / 1e6:.2f}" for name, rate in of.items())
            say(f"{figure}, million rows/s: {shown}")
        one, two, push = (rates[figure] for figure in ("lookup 1", "lookup 2", "push"))
        found["lookup_vs_libcuckoo"] = _over(one["cuckooflow"], one.get("libcuckoo"))
        found["lookup_vs_gather"] = _over(one["cuckooflow"], one.get("dense gather"))
        found["threads2_scaling"] = _over(two["cuckooflow"], one["cuckooflow"])
        peers_push = [push[name] for name in ("libcuckoo", "TFRA") if name in push]
        found["push_vs_peer"] = _over(push["cuckooflow"], max(peers_push, default=None))
        say(f"a push costs {one['cuckooflow'] / push['cuckooflow']:.2f} x a lookup")
        touched = min(TOUCHED, rows // 20)
        large = delta_seconds(pusher, rows, touched, 7)
        small = delta_seconds(new_store(rows // 10), rows // 10, touched, 7)
        say(
            f"delta of {touched} rows: {large * 1e3:.2f} ms of {rows} rows, {small * 1e3:.2f} ms of {rows // 10}"
        )
        disk = bandwidth(pusher, data, max(1, repeats - 1))
        say(
            f"MB/s: disk write {disk.disk_write / 1e6:.0f}, checkpoint {disk.checkpoint / 1e6:.0f}; "
            f"disk read {disk.disk_read / 1e6:.0f}, restore {disk.restore / 1e6:.0f}; "
            f"memory first touched {disk.first_touch / 1e6:.0f}"
        )
        del pusher
    grown = growth(rows // 10, rows, repeats)
    say(
        f"growth {rows // 10} to {rows} rows: worst call {grown.worst_us:.0f} us, median {grown.median_us:.0f} us; "
        f"index bytes a row {grown.index_bytes_full:.2f} at its fullest, {grown.index_bytes_grown:.2f} just grown; "
        f"header {grown.header_bytes} bytes a row"
    )
    found["index_bytes_per_row"] = round(grown.index_bytes_full, 2)
    found["growth_worst_vs_median"] = _over(grown.worst_us, grown.median_us)
    trips = round_trips(rows, seconds, _redis_there(say))
    for name, trip in trips.items():
        say(
            f"{ASKED} rows over loopback, {name}: {trip * 1e3:.3f} ms, {ASKED / trip / 1e6:.2f} million rows/s"
        )
    found["flight_vs_echo"] = _over(trips["cuckooflow"], trips["echo"])
    found["flight_vs_redis"] = None if "redis" not in trips else _over(trips["redis"], trips["cuckooflow"])
    found["checkpoint_vs_disk"] = round(disk.ratio, 3)
    found["delta_size_ratio"] = _over(large, small)
    found["rows"] = rows
    return found


def _native_peers(say: Say) -> NativePeers | None:
    try:
        peers = NativePeers()
    except PeerMissing as missing:
        say(f"skipped: {missing}")
        return None
    say(f"compiled like the store, with {' '.join(peers.flags)}")
    same_values(peers)
    return peers


def _tfra(work: Workload, install: bool, say: Say) -> dict[str, float]:
    try:
        rates = tfra_rates(work.rows, work.batch, work.seconds, install)
    except PeerMissing as missing:
        say(f"skipped: {missing}")
        return {}
    return {"lookup 1": rates["lookup"], "push": rates["push"]}


def _redis_there(say: Say) -> bool:
    try:
        redis_command()
    except PeerMissing as missing:
        say(f"skipped: Redis: {missing}")
        return False
    return True


def _over(a: float, b: float | None) -> float | None:
    return None if b is None else round(a / b, 3)


def _scratch() -> Path:
    """Where checkpoints go: beside the code, since /tmp may be memory."""
    CACHE.mkdir(parents=True, exist_ok=True)
    return CACHE


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, help=f"default {ROWS}; 30 million need 20 GiB of memory")
    parser.add_argument("--batch", type=int, default=8_192, help="rows in a lookup or a push")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROWS} rows, less time for each figure")
    parser.add_argument("--json", action="store_true", help="the figures behind the ratios go to stderr")
    parser.add_argument("--seconds", type=float, help="for each figure of each contender; default 4, quick 1")
    given = parser.parse_args(arguments)
    rows = given.rows or (QUICK_ROWS if given.quick else ROWS)

    def say(line: str) -> None:
        print(line, file=sys.stderr if given.json else sys.stdout, flush=True)

    seconds, repeats = (1.0, 2) if given.quick else (4.0, 3)
    seconds = given.seconds or seconds
    print(json.dumps(measure(rows, given.batch, seconds, repeats, not given.quick, say)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
