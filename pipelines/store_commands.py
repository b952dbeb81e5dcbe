"""``cuckooflow store serve | stats | get | export | verify | reshard``: the embedding store by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from cuckooflow.embedding_store import _native
from cuckooflow.embedding_store.checkpoint_chain import CheckpointPolicy
from cuckooflow.embedding_store.client import CALL_S_MAX, StoreClient
from cuckooflow.embedding_store.inspection import CheckpointRows, verify
from cuckooflow.embedding_store.kinds import NEVER_US
from cuckooflow.embedding_store.resharding import reshard
from cuckooflow.embedding_store.security import ServerSecurity
from cuckooflow.embedding_store.sharded_client import ShardedClient
from cuckooflow.embedding_store.shards import Shard
from cuckooflow.errors import SpecError, StoreError
from cuckooflow.pipelines.store_export import in_groups, write_states, write_weights

app = typer.Typer(no_args_is_help=True, help="The embedding store: serve, look into, check, deal out.")

Job = Annotated[Path | None, typer.Option("--job", metavar="JOB.YAML", help="the job whose store it is")]
Addresses = Annotated[
    list[str] | None,
    typer.Option("--address", help="host:port or address file; of several shards, once each, in their order"),
]
AsJson = Annotated[bool, typer.Option("--json", help="one JSON value instead of tables")]

#: How long a store that does not answer is asked again, and how long one call may take; all rows take longer.
_RETRY_S = 5.0
_CALL_S_MAX = 15.0


class ExportFormat(StrEnum):
    PARQUET = "parquet"


@app.command("serve")
def serve_command(
    spec_file: Annotated[
        Path | None, typer.Argument(metavar="[JOB.YAML]", help="the job spec; or --config and --data")
    ] = None,
    shard: Annotated[int, typer.Option(min=0, help="which shard, from 0")] = 0,
    of: Annotated[
        int | None, typer.Option("--of", min=1, help="how many shards; default: the job's, else 1")
    ] = None,
    listen: Annotated[
        str | None, typer.Option(help="host:port; default: the job's, else 127.0.0.1:0")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="folder of checkpoints; default: the job's, of several shards shard-N in it"),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="the store's configuration, JSON; default: the job's, or that in --data"),
    ] = None,
    http: Annotated[str | None, typer.Option(help="loopback host:port of /healthz and /metrics")] = None,
    tls_certificate: Annotated[Path | None, typer.Option(help="PEM; with --tls-key")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM")] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="holds the clients' token; or CUCKOOFLOW_STORE_TOKEN does")
    ] = None,
    checkpoint_interval_s: Annotated[
        float | None, typer.Option(min=0.001, help="default: the job's, else 60")
    ] = None,
    call_bytes_max: Annotated[int | None, typer.Option(min=1, help="bytes of one call")] = None,
    rows_max: Annotated[int | None, typer.Option(min=1, help="ids of one call")] = None,
    calls_max: Annotated[int | None, typer.Option(min=1, help="calls worked on at once")] = None,
    queue_max: Annotated[int | None, typer.Option(min=0, help="calls that wait")] = None,
    turn_wait_s_max: Annotated[
        float | None, typer.Option(min=0, help="how long a call waits for its turn")
    ] = None,
    connections_max: Annotated[int | None, typer.Option(min=1, help="connected clients")] = None,
    lookup_threads: Annotated[
        int | None, typer.Option(min=0, help="threads that help with large lookups")
    ] = None,
    finish_s_max: Annotated[
        float | None, typer.Option(min=0, help="how long SIGTERM waits for calls under way")
    ] = None,
) -> None:
    """Run a store, or one shard of it, until SIGTERM; it writes a checkpoint before it ends."""
    from cuckooflow.embedding_store.server import leave, read_config, serve
    from cuckooflow.embedding_store.server_limits import ServerLimits

    interval_s, policy = 60.0, CheckpointPolicy()
    if spec_file is not None:
        from cuckooflow.pipelines.options import store_config, store_folder
        from cuckooflow.pipelines.spec_file import load_spec

        job = load_spec(spec_file)
        store = store_config(job) if config is None else read_config(config, Path())
        of = job.store.shards if of is None else of
        if of != job.store.shards and data is None:
            raise SpecError(f"expected --of {job.store.shards}, as store.shards has it, received {of}")
        data = data or store_folder(job, shard)
        listen = listen or job.store.listen
        interval_s = job.store.checkpoint_interval / 1e6
        policy = CheckpointPolicy(history_s=job.store.checkpoint_history / 1e6)
    elif data is None:
        raise SpecError("expected a job, or --data with --config or a store in it, received neither")
    else:
        store = read_config(config, data)
    given: dict[str, Any] = {
        "call_bytes_max": call_bytes_max,
        "rows_max": rows_max,
        "calls_max": calls_max,
        "queue_max": queue_max,
        "turn_wait_s_max": turn_wait_s_max,
        "connections_max": connections_max,
        "lookup_threads": lookup_threads,
        "finish_s_max": finish_s_max,
    }
    finished = serve(
        store,
        data,
        listen or "127.0.0.1:0",
        interval_s if checkpoint_interval_s is None else checkpoint_interval_s,
        shard=Shard(shard, of or 1),
        http=http,
        limits=ServerLimits(**{name: value for name, value in given.items() if value is not None}),
        security=ServerSecurity.load(tls_certificate, tls_key, token_file),
        policy=policy,
    )
    leave(finished)


@app.command("stats")
def stats_command(address: Addresses = None, job: Job = None, as_json: AsJson = False) -> None:
    """Show what a running store holds."""
    with _store(address, job) as store:
        stats = store.stats()
    if as_json:
        print(json.dumps(stats))
        return
    console = _console()
    shards = stats.get("shards")
    of = f", {len(shards)} shards" if isinstance(shards, list) else f", {Shard(*_pair(stats['shard']))}"
    console.print(
        f"incarnation {stats['incarnation']}{of}, {stats['pushes_applied']} pushes applied, newest event time "
        f"{_time(stats['event_time_us'])}"
    )
    _show_tables(console, "table", _mapping(stats["tables"]))
    if isinstance(shards, list):
        by_shard = {
            f"{number} {name}": of_table
            for number, shard in enumerate(shards)
            for name, of_table in _mapping(shard["tables"]).items()
        }
        _show_tables(console, "shard and table", by_shard)


@app.command("get")
def get_command(
    id_text: Annotated[str, typer.Argument(metavar="ID", help="decimal, or hexadecimal with 0x")],
    address: Addresses = None,
    job: Job = None,
    as_json: AsJson = False,
) -> None:
    """Show what every table of a running store holds of an id: weights, sums as of its last event, recent ids."""
    ids = np.array([_id(id_text)], np.uint64)
    with _store(address, job) as store:
        tables = store.config.tables
        rows = store.lookup_at({table.name: ids for table in tables})
    found: dict[str, dict[str, Any]] = {}
    for table in tables:
        times: dict[str, Any] = {}
        if table.kind == "counter":
            counter = rows.counters[table.name]
            known, values = counter.first_us[0] != NEVER_US, counter.sums[0].tolist()
            if known:
                times = {"first_us": int(counter.first_us[0]), "last_us": int(counter.last_us[0])}
        elif table.kind == "recent":
            recent = rows.recents[table.name]
            kept = recent.times_us[0] != NEVER_US
            known, values = bool(kept.any()), recent.values[0][kept].tolist()
            times = {"times_us": recent.times_us[0][kept].tolist()}
        else:
            weights = rows.weights[table.name][0]
            initial = _native.initial_values(ids, table.dim, table.seed, table.init_stddev)[0]
            known, values = not np.array_equal(weights, initial), weights.tolist()
        found[table.name] = {"kind": table.kind, "trained": bool(known), "values": values, **times}
    if as_json:
        print(json.dumps({"id": int(ids[0]), "tables": found}))
        return
    shown = Table(
        "table",
        "kind",
        "trained",
        "last event",
        "values",
        title=f"id {ids[0]} ({int(ids[0]):#x})",
        title_justify="left",
    )
    for name, entry in found.items():
        values = " ".join(
            f"{value:.6g}" if isinstance(value, float) else str(value) for value in entry["values"]
        )
        untrained = "no, initial values" if entry["kind"] == "embedding" else "no row"
        last_us = entry.get("last_us", next(iter(entry.get("times_us", ())), None))
        last = "" if last_us is None else _time(last_us)
        shown.add_row(name, entry["kind"], "yes" if entry["trained"] else untrained, last, values)
    _console().print(shown)


@app.command("export")
def export_command(
    format_: Annotated[ExportFormat, typer.Argument(metavar="FORMAT", help="parquet")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="folder that gets TABLE.parquet for each table")],
    data: Annotated[
        list[Path] | None,
        typer.Option(help="a store's folder: its newest whole checkpoint; of shards, once each"),
    ] = None,
    address: Addresses = None,
    job: Job = None,
) -> None:
    """Write all rows of a running store, or of a folder's newest checkpoint: TABLE.parquet for each table.

    Columns are id and weights; of a counter id, first_us, last_us and sums as of then; of a recent table id, values and
    times_us, newest first.
    """
    del format_  # there is one
    if data and (address or job):
        raise SpecError("expected --data, or --address, or --job, received more than one of them")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SpecError(f"expected a folder at {out}, which cannot be made ({error.strerror})") from error
    if data:
        found = [CheckpointRows(folder) for folder in data]
        for table in found[0].config.tables:
            if table.kind == "embedding":
                pieces = (piece for rows in found for piece in rows.pieces(table.name))
                write_weights(out, table, pieces)
            else:
                write_states(out, table, (piece for rows in found for piece in rows.states(table.name)))
        return
    with _store(address, job, CALL_S_MAX) as store:
        for table in store.config.tables:
            if table.kind == "embedding":
                write_weights(out, table, in_groups(*store.rows(table.name)))
            else:
                write_states(out, table, in_groups(*store.states(table.name)))


@app.command("verify")
def verify_command(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="data folders")],
    as_json: AsJson = False,
) -> None:
    """Check every checkpoint in data folders as a restore would; exit 1 where one is not whole."""
    found = [(folder, report) for folder in folders for report in verify(folder)]
    if as_json:
        print(json.dumps([{"folder": str(folder), **vars(report)} for folder, report in found]))
    for folder, report in found if not as_json else ():
        if report.fault is not None:
            print(f"{folder}/{report.name}: DAMAGED: {report.fault}")
            continue
        rows = ", ".join(f"{n} rows in {name}" for name, n in report.rows.items())
        print(
            f"{folder}/{report.name}: whole: {rows or 'no tables'}; {report.bytes} bytes, {report.pushes_applied} pushes"
        )
    if not found and not as_json:
        print("no checkpoint yet")
    if any(report.fault is not None for _, report in found):
        raise typer.Exit(1)


@app.command("reshard")
def reshard_command(
    from_: Annotated[list[Path], typer.Option("--from", help="data folder of a shard; once each")],
    to: Annotated[Path, typer.Option(help="absent or empty; gets shard-0, shard-1...")],
    of: Annotated[int, typer.Option("--of", min=1, help="how many new shards")],
) -> None:
    """Deal the newest checkpoints of all shards out to another number of shards."""
    for folder in reshard(from_, to, of):
        print(folder)


# --- which store -----------------------------------------------------------------------------------


@contextmanager
def _store(
    addresses: list[str] | None, job: Path | None, call_s_max: float | None = None
) -> Iterator[StoreClient | ShardedClient]:
    if bool(addresses) == (job is not None):
        raise SpecError("expected --address or --job, one of them: which store?")
    found = list(addresses or ()) if job is None else [str(path) for path in _of_job(job)]
    call_s_max = _CALL_S_MAX if call_s_max is None else call_s_max
    store: StoreClient | ShardedClient = (
        ShardedClient(found, _RETRY_S, call_s_max)
        if len(found) > 1
        else StoreClient(found[0], _RETRY_S, call_s_max)
    )
    try:
        yield store
    finally:
        store.close()


def _of_job(spec_file: Path) -> list[Path]:
    """The address files of a job's store, shard after shard."""
    from cuckooflow.pipelines.options import store_addresses
    from cuckooflow.pipelines.spec_file import load_spec

    return store_addresses(load_spec(spec_file))


# --- how it is shown -------------------------------------------------------------------------------


def _console() -> Console:
    return Console(soft_wrap=True, highlight=False)


def _show_tables(console: Console, head: str, tables: Mapping[str, Mapping[str, Any]]) -> None:
    """A row for each statistic and a column for each table; those of slots come below."""
    names = dict.fromkeys(name for of in tables.values() for name in of if name != "slots")
    slots = {int(slot) for of in tables.values() for slot in of.get("slots", {})}
    shown = Table(head, *tables, box=None, pad_edge=False, header_style="dim")
    for name in names:
        shown.add_row(name, *(_figure(of.get(name)) for of in tables.values()))
    for slot in sorted(slots):
        shown.add_row(
            f"rows of slot {slot}", *(_figure(of.get("slots", {}).get(str(slot))) for of in tables.values())
        )
    console.print(shown)


def _figure(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if isinstance(value, float) else f"{value:,}"


def _time(time_us: object) -> str:
    return "none" if not isinstance(time_us, int) else f"{np.datetime64(time_us, 'us')}Z"


def _pair(value: object) -> tuple[int, int]:
    if not (isinstance(value, list | tuple) and len(value) == 2):
        raise StoreError(f"expected a shard, received {value!r}; is the store of another version?")
    return int(value[0]), int(value[1])


def _mapping(value: object) -> Mapping[str, Mapping[str, Any]]:
    if not isinstance(value, Mapping):
        raise StoreError(
            f"expected the statistics of tables, received {value!r}; is the store of another version?"
        )
    return value


def _id(text: str) -> int:
    try:
        id_ = int(text, 16 if text.lower().startswith("0x") else 10)
    except ValueError:
        id_ = -1
    if not 0 <= id_ < 1 << 64:
        raise SpecError(f"expected an id from 0 to 2^64-1, decimal or as 0x..., received {text!r}")
    return id_
