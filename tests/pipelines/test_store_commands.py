"""``cuckooflow store ...``: what each command prints and writes, and its exit codes 0, 1 and 2."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cuckooflow.embedding_store.api import Optimizer, StoreConfig, TableConfig, TablePush
from cuckooflow.embedding_store.client import connect
from cuckooflow.embedding_store.config_json import config_to_json
from cuckooflow.embedding_store.kinds import CounterPush, RecentPush
from cuckooflow.embedding_store.server import StoreServer
from cuckooflow.embedding_store.shards import Ownership, Shard
from cuckooflow.embedding_store.store import EmbeddedStore, open_store
from cuckooflow.errors import BadShape
from cuckooflow.logs.contract import LogRange, Position
from cuckooflow.pipelines import store_commands
from cuckooflow.pipelines.cli import main
from cuckooflow.pipelines.options import store_addresses
from cuckooflow.pipelines.spec_file import load_spec

SPEC = Path(__file__).parent / "job.yaml"
CONFIG = StoreConfig(
    (
        TableConfig("user", 3),
        TableConfig("a/b", 1, Optimizer("sgd", 1.0), init_stddev=0.0),
        TableConfig("empty", 2, admission=200, filter_bytes=1 << 14),
    ),
    buckets=8,
)
IDS = np.array([0, 7, 2**63, 2**64 - 1, *range(100, 160)], np.uint64)


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the command line in this process: ``run("store", "verify", path)`` -> (exit code, stdout, stderr)."""

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cuckooflow", *map(str, words)])
        capsys.readouterr()
        try:
            main()
            code: object = 0
        except SystemExit as ended:
            code = ended.code
        out, err = capsys.readouterr()
        return code, out, err  # type: ignore[return-value]

    return call


def train(store, ids=IDS, at=0) -> None:
    store.open_log("examples", "made-once", {0: Position(0)})
    tables = {
        "user": TablePush(ids, np.outer(ids % np.uint64(5), [1, 2, 3]).astype(np.float32)),
        "a/b": TablePush(ids, np.full((len(ids), 1), -1.0, np.float32)),
        "empty": TablePush(ids, np.ones((len(ids), 2), np.float32)),
    }
    range_ = LogRange("examples", "made-once", 0, Position(at), Position(at + 1))
    store.push(range_, tables, {}, 1_767_225_600_000_000)


@pytest.fixture
def folders(tmp_path) -> list[Path]:
    """Two shards with a checkpoint each."""
    found = []
    for i in range(2):
        store = open_store(CONFIG, tmp_path / "shards" / str(i), Shard(i, 2))
        train(store, IDS[Ownership(CONFIG, Shard(i, 2)).owned(IDS)])
        store.checkpoint()
        store.close()
        found.append(tmp_path / "shards" / str(i))
    return found


@pytest.fixture
def addresses(folders):
    """Those shards, served."""
    stores = [EmbeddedStore.restore(folder) for folder in folders]
    servers = [StoreServer(store, "127.0.0.1:0") for store in stores]
    yield [word for server in servers for word in ("--address", f"127.0.0.1:{server.port}")]
    for server, store in zip(servers, stores, strict=True):
        server.shutdown()
        store.close()


def test_stats(run, addresses):
    code, out, _ = run("store", "stats", *addresses, "--json")
    assert code == 0
    stats = json.loads(out)
    assert stats["tables"]["user"]["rows"] == stats["tables"]["a/b"]["rows"] == len(IDS)
    assert stats["tables"]["empty"]["rows"] == 0
    assert sum(shard["tables"]["user"]["rows"] for shard in stats["shards"]) == len(IDS)
    code, out, _ = run("store", "stats", *addresses)
    assert code == 0
    for words in ("2 shards", "1 pushes applied", "2026-01-01T00:00:00", "a/b", "load_factor", "1 user"):
        assert words in out, words
    # One shard alone is a store's part as well, and says so.
    code, out, _ = run("store", "stats", *addresses[:2], "--json")
    assert (code, json.loads(out)["shard"]) == (0, [0, 2])
    assert ", shard 0 of 2, 1 pushes applied" in run("store", "stats", *addresses[:2])[1]


def test_get(run, addresses):
    for text, id_ in (("0xFFFFFFFFFFFFFFFF", 2**64 - 1), ("9223372036854775808", 2**63), ("0", 0)):
        code, out, _ = run("store", "get", text, *addresses, "--json")
        found = json.loads(out)
        assert (code, found["id"]) == (0, id_)
        assert found["tables"]["a/b"] == {"kind": "embedding", "trained": True, "values": [1.0]}
        assert len(found["tables"]["user"]["values"]) == 3
        assert not found["tables"]["empty"]["trained"]
    code, out, _ = run("store", "get", "0x7", *addresses)
    assert code == 0
    assert "id 7 (0x7)" in out and "no, initial values" in out
    assert json.loads(run("store", "get", "12345", *addresses, "--json")[1])["tables"]["a/b"] == {
        "kind": "embedding",
        "trained": False,
        "values": [0.0],
    }


@pytest.mark.parametrize("text", ["x", "0x", "-1", "18446744073709551616", "1.5", ""])
def test_get_of_what_is_no_id(run, text):
    code, _, err = run("store", "get", "--address", "127.0.0.1:1", "--", text)
    assert code == 2
    assert "expected an id" in err


def test_export_from_folders_and_from_running_shards_are_equal(run, folders, addresses, tmp_path):
    data = [word for folder in folders for word in ("--data", folder)]
    assert run("store", "export", "parquet", tmp_path / "from-folders", *data)[0] == 0
    code, out, _ = run("store", "export", "parquet", tmp_path / "from-shards", *addresses)
    assert code == 0
    assert f"user.parquet: {len(IDS)} rows" in out
    stores = [EmbeddedStore(CONFIG)]
    train(stores[0])
    for table in CONFIG.tables:
        name = table.name.replace("/", "%2F") + ".parquet"
        found = [pq.read_table(tmp_path / where / name) for where in ("from-folders", "from-shards")]
        assert found[0].schema.field("id").type == pa.uint64()
        assert found[0].schema.field("weights").type == pa.list_(pa.float32())
        rows = [dict(zip(t["id"].to_pylist(), t["weights"].to_pylist(), strict=True)) for t in found]
        assert rows[0] == rows[1]
        assert sorted(rows[0]) == ([] if table.name == "empty" else sorted(IDS.tolist()))
        if rows[0]:
            expected = stores[0].lookup({table.name: IDS})[table.name]
            np.testing.assert_array_equal(np.array([rows[0][id_] for id_ in IDS.tolist()]), expected)
        assert found[0].num_rows == len(rows[0])
    assert not list(tmp_path.glob("*/.*"))


def test_export_of_counters_and_recent_ids(run, tmp_path):
    config = StoreConfig(
        (
            TableConfig("clicks", 2, kind="counter", half_lives_us=(100, 0)),
            TableConfig("last", 3, kind="recent"),
        )
    )
    store = open_store(config, tmp_path / "data")
    store.open_log("examples", "made-once", {0: Position(0)})
    ids = np.array([2**64 - 1, 5, 5], np.uint64)
    times = np.array([100, 200, 300])
    tables = {
        "clicks": CounterPush(ids, np.array([[1, 2], [4, 4], [1, 1]], np.float32), times),
        "last": RecentPush(ids, np.array([7, 8, 9], np.uint64), times),
    }
    store.push(LogRange("examples", "made-once", 0, Position(0), Position(1)), tables, {}, 300)
    with pytest.raises(BadShape, match="of kind counter"):
        store.rows("clicks")
    store.checkpoint()
    server = StoreServer(store, "127.0.0.1:0")
    try:
        assert (
            run("store", "export", "parquet", tmp_path / "a", "--address", f"127.0.0.1:{server.port}")[0] == 0
        )
        assert run("store", "export", "parquet", tmp_path / "b", "--data", tmp_path / "data")[0] == 0
        here = ("--address", f"127.0.0.1:{server.port}")
        assert json.loads(run("store", "get", 5, *here, "--json")[1])["tables"] == {
            "clicks": {"kind": "counter", "trained": True, "values": [3, 5], "first_us": 200, "last_us": 300},
            "last": {"kind": "recent", "trained": True, "values": [9, 8], "times_us": [300, 200]},
        }
        assert run("store", "get", 5, *here)[1].count("1970-01-01T00:00:00.000300Z") == 2
        assert json.loads(run("store", "get", 6, *here, "--json")[1])["tables"] == {
            "clicks": {"kind": "counter", "trained": False, "values": [0, 0]},
            "last": {"kind": "recent", "trained": False, "values": [], "times_us": []},
        }
        assert run("store", "get", 6, *here)[1].count("no row") == 2
    finally:
        server.shutdown()
        store.close()
    for out in ("a", "b"):
        clicks, last = (
            sorted(pq.read_table(tmp_path / out / f"{name}.parquet").to_pylist(), key=lambda row: row["id"])
            for name in ("clicks", "last")
        )
        assert clicks == [
            {"id": 5, "first_us": 200, "last_us": 300, "sums": [3.0, 5.0]},
            {"id": 2**64 - 1, "first_us": 100, "last_us": 100, "sums": [1.0, 2.0]},
        ]
        assert last == [
            {"id": 5, "values": [9, 8], "times_us": [300, 200]},
            {"id": 2**64 - 1, "values": [7], "times_us": [100]},
        ]


def test_verify_says_what_is_whole(run, folders):
    store = EmbeddedStore.restore(folders[0])
    train(store, IDS[Ownership(CONFIG, Shard(0, 2)).owned(IDS)], at=1)
    store.checkpoint()
    # It may be served meanwhile.
    code, out, _ = run("store", "verify", *folders)
    assert code == 0
    lines = out.splitlines()
    assert len(lines) == 3 and all(": whole: " in line for line in lines)
    assert "2 pushes" in lines[1]
    store.close()
    newest = max(folders[0].glob("checkpoint-*"))
    shutil.copytree(newest, folders[0] / "kept")
    for fault, damage in {
        "table-0.rows has another checksum": lambda: flip(newest / "table-0.rows"),
        "table-0.rows ends": lambda: (newest / "table-0.rows").write_bytes(b""),
        "table-1.filter cannot be read": lambda: (newest / "table-1.filter").unlink(),
        "manifest.json cannot be read": lambda: (newest / "manifest.json").write_text("{"),
    }.items():
        shutil.rmtree(newest)
        shutil.copytree(folders[0] / "kept", newest)
        damage()
        code, out, _ = run("store", "verify", *folders)
        assert code == 1
        assert [": whole: " in line for line in out.splitlines()] == [True, False, True]
        assert "DAMAGED" in out and fault in out, out
    code, out, _ = run("store", "verify", folders[0], "--json")
    whole, damaged = json.loads(out)
    assert (code, whole["fault"], damaged["rows"]) == (1, None, {})
    assert whole["rows"]["user"] > 0
    # A damaged one is passed over.
    assert run("store", "export", "parquet", folders[0] / "out", "--data", folders[0])[0] == 0


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_reshard_and_go_on(run, folders, tmp_path):
    sources = [word for folder in folders for word in ("--from", folder)]
    code, out, _ = run("store", "reshard", *sources, "--to", tmp_path / "new", "--of", 3)
    assert code == 0
    assert out.splitlines() == [str(tmp_path / "new" / f"shard-{i}") for i in range(3)]
    assert run("store", "verify", *out.splitlines())[0] == 0
    assert run("store", "reshard", *sources[:2], "--to", tmp_path / "other", "--of", 3)[0] == 1
    assert run("store", "reshard", *sources, "--to", tmp_path / "new", "--of", 3)[0] == 2
    assert run("store", "reshard", *sources, "--to", tmp_path / "other", "--of", 9)[0] == 2


def test_failures_and_usage_errors(run, tmp_path, monkeypatch):
    monkeypatch.setattr(store_commands, "_RETRY_S", 0.1)
    monkeypatch.setattr(store_commands, "_CALL_S_MAX", 0.5)
    file = tmp_path / "file"
    file.write_bytes(b"\xff\xfe")
    config = tmp_path / "config.json"
    config.write_text(config_to_json(CONFIG))
    own = ("serve", "--config", config, "--data", tmp_path / "own")
    taken = socket.create_server(("127.0.0.1", 0))
    port = f"127.0.0.1:{taken.getsockname()[1]}"
    locked = open_store(CONFIG, tmp_path / "locked")
    for words, code, says in [
        (
            (*own[:3], "--data", file),
            1,
            f"DataFolderUnusable: expected a folder that this user may write to at {file}",
        ),
        ((*own[:3], "--data", tmp_path / "locked"), 1, "StoreLocked"),
        ((*own, "--listen", port), 1, f"StoreUnavailable: expected to listen at {port}"),
        ((*own, "--http", port), 1, f"StoreUnavailable: expected to listen at {port} for HTTP"),
        ((*own, "--http", "0.0.0.0:0"), 1, "InsecureListen"),
        ((*own, "--tls-certificate", file), 2, "received one of them"),
        ((*own, "--tls-certificate", file, "--tls-key", file), 2, f"expected a certificate chain in {file}"),
        ((*own, "--token-file", file), 2, "expected a token"),
        (
            ("serve", "--config", file, "--data", tmp_path / "own"),
            2,
            f"expected a store configuration in {file}",
        ),
        (("export", "parquet", file, "--data", tmp_path / "locked"), 2, f"expected a folder at {file}"),
        (("verify", file), 1, "holds no store"),
        (("stats", "--address", file), 1, f"expected a store's address in {file}"),
        (("stats", "--address", "127.0.0.1:1"), 1, "did not answer 'stats'"),
        (("stats", "--address", port), 1, "did not answer 'stats'"),  # connects, and hears nothing
        (("get", "1", "--address", port, "--address", port), 1, "shard 0 of 2"),
        (("stats",), 2, "which store?"),
        (("stats", "--address", "nowhere"), 2, "host:port"),
        (("stats", "--address", "a:1", "--job", SPEC), 2, "one of them"),
        (("stats", "--address", "10.0.0.1:80"), 1, "InsecureListen"),
        (("export", "parquet", tmp_path / "out", "--data", tmp_path), 1, "holds no store"),
        (("export", "parquet", tmp_path / "out", "--data", tmp_path, "--address", "a:1"), 2, "more than one"),
        (("export", "csv", tmp_path / "out"), 2, "csv"),
        (("verify", tmp_path), 1, "holds no store"),
        (("verify",), 2, "DIR"),
        (("serve",), 2, "received neither"),
        (("serve", "--data", tmp_path), 2, "received neither"),
        (("serve", "--data", tmp_path, "--config", tmp_path / "none"), 2, "cannot be read"),
        (("serve", SPEC, "--data", tmp_path / "x", "--listen", "0.0.0.0:0"), 1, "InsecureListen"),
        (("serve", SPEC, "--data", tmp_path / "x", "--shard", 3, "--of", 2), 2, "a shard from 0 to 1"),
    ]:
        found, out, err = run("store", *words)
        assert (words, found) == (words, code)
        assert says in out + err, (words, out, err)
        assert "Traceback" not in out + err
    taken.close()
    locked.close()


def test_a_folder_without_a_checkpoint(run, tmp_path):
    open_store(CONFIG, tmp_path / "data").close()
    assert run("store", "verify", tmp_path / "data")[:2] == (0, "no checkpoint yet\n")
    code, _, err = run("store", "export", "parquet", tmp_path / "out", "--data", tmp_path / "data")
    assert code == 1
    assert "no checkpoint yet" in err


@pytest.mark.fault
def test_serve_as_shards_of_a_job_and_by_folder(cli, tmp_path):
    """Two shards of a job's store and one without a job, ended by SIGTERM with 0."""
    spec = tmp_path / "job.yaml"
    spec.write_text(SPEC.read_text().replace("buckets: 8", "buckets: 8, shards: 2"))
    (tmp_path / "config.json").write_text(config_to_json(CONFIG))
    serve = [sys.executable, "-m", "cuckooflow.pipelines.cli", "store", "serve"]
    commands = [[*serve, str(spec), "--shard", str(i)] for i in range(2)]
    own = [
        "--config",
        str(tmp_path / "config.json"),
        "--data",
        str(tmp_path / "own"),
        "--http",
        "127.0.0.1:0",
    ]
    commands.append([*serve, *own, "--rows-max", "10", "--checkpoint-interval-s", "3600"])
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"}
    processes = [
        subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
        for command in commands
    ]
    try:
        client = connect(tmp_path / "own" / "address")
        train(client, IDS[:3])
        client.close()
        both = connect(store_addresses(load_spec(spec)))
        tables = [table.name for table in both.config.tables]
        both.close()
        done = cli("store", "stats", "--job", spec, "--json")
        assert (done.returncode, done.stderr) == (0, "")
        assert list(json.loads(done.stdout)["tables"]) == tables
        for process in processes:
            process.send_signal(signal.SIGTERM)
        assert [process.wait(60) for process in processes] == [0, 0, 0]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    again = EmbeddedStore.restore(tmp_path / "own")
    assert (again.lookup({"a/b": IDS[:3]})["a/b"] == 1).all()
    again.close()
