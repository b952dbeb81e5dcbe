"""A store's folder: its lock, its configuration, the logs it opened, its address and its checkpoints."""

from __future__ import annotations

import json
import weakref
import zlib
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from cuckooflow.embedding_store.api import StoreConfig
from cuckooflow.embedding_store.config_json import config_from_file, config_to_json
from cuckooflow.embedding_store.durable import write_durably
from cuckooflow.embedding_store.shards import WHOLE, Shard, check_shard
from cuckooflow.errors import CheckpointDamaged, ConfigDiffers, DataFolderUnusable, StoreLocked, WrongShard
from cuckooflow.file_lock import FileLock


class DataFolder:
    """Owned by one store at a time.

    Raises:
        StoreLocked: another store has it.
        DataFolderUnusable: it cannot be made, or not be written to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path / "lock")
        except BlockingIOError as error:
            raise StoreLocked(
                f"the store's folder {path} is in use by another store. Stop that one, or use another folder."
            ) from error
        except OSError as error:
            raise DataFolderUnusable(
                f"expected a folder that this user may write to at {path}, received: {error.strerror} "
                f"({error.filename}). Name another, or give this user the rights."
            ) from error
        # A store that is dropped without being closed gives its folder back as well.
        self._release = weakref.finalize(self, lock.release)

    def close(self) -> None:
        """Release the folder. Idempotent."""
        self._release()

    def config(self) -> StoreConfig | None:
        """The configuration of the store that lies here, or None."""
        file = self.path / "store.json"
        return config_from_file(file) if file.exists() else None

    def shard(self) -> Shard:
        """Which shard of the store lies here; the only one where nothing else was recorded."""
        return read_shard(self.path)

    def claim(self, config: StoreConfig, shard: Shard = WHOLE) -> None:
        """Record the configuration and the shard, or see that they are the recorded ones.

        Raises:
            ConfigDiffers: the folder holds a store of another configuration.
            WrongShard: it holds another shard.
            SpecError: a store of this configuration has no such shard.
        """
        check_shard(shard, config.buckets)
        here = self.config()
        if here is not None and self.shard() != shard:
            raise WrongShard(
                f"expected {self.shard()}, which lies in {self.path}, received {shard}. Use that shard's "
                "folder, or deal the store out to another number of shards with cuckooflow store reshard."
            )
        if here is None:
            # Before the configuration, whose presence says that a store lies here.
            write_durably(self.path / "shard.json", json.dumps(shard._asdict()).encode())
            write_durably(self.path / "store.json", config_to_json(config).encode())
        elif config_to_json(here) != config_to_json(config):
            raise ConfigDiffers(
                f"expected the configuration that the store in {self.path} was created with; these parts "
                f"differ: {', '.join(_differences(here, config))}. Use the old configuration, or another folder."
            )

    def opened_logs(self) -> dict[str, Any]:
        """What :meth:`record_logs` wrote; empty if nothing."""
        file = self.path / "logs.json"
        if not file.exists():
            return {}
        try:
            envelope = json.loads(file.read_text())
            if zlib.crc32(envelope["body"].encode()) != envelope["crc32"]:
                raise ValueError("another checksum than it says")
            return cast(dict[str, Any], json.loads(envelope["body"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointDamaged(
                f"{file} is damaged ({error}): the start positions of the logs are lost. "
                "Put a copy back, or train a new store from the start of the logs."
            ) from error

    def record_logs(self, opened: dict[str, Any]) -> None:
        """Durably record the logs' incarnations and start positions."""
        text = json.dumps(opened, sort_keys=True)
        envelope = json.dumps({"crc32": zlib.crc32(text.encode()), "body": text})
        write_durably(self.path / "logs.json", envelope.encode())


def read_shard(path: Path) -> Shard:
    """Which shard lies in a folder; the only one where nothing else was recorded.

    Raises:
        CheckpointDamaged: what was recorded cannot be read.
    """
    file = path / "shard.json"
    if not file.exists():
        return WHOLE
    try:
        return Shard(**json.loads(file.read_text()))
    except (ValueError, TypeError) as error:
        raise CheckpointDamaged(
            f"{file} is damaged ({error}): expected the shard's number and of. Put a copy back."
        ) from error


def _differences(here: StoreConfig, given: StoreConfig) -> list[str]:
    found = []
    if here.buckets != given.buckets:
        found.append(f"buckets ({here.buckets}, received {given.buckets})")
    for kind, ours, theirs in (
        ("table", {t.name: t for t in here.tables}, {t.name: t for t in given.tables}),
        ("dense", {d.name: d for d in here.dense}, {d.name: d for d in given.dense}),
    ):
        for name in sorted({*ours, *theirs}):
            if name not in theirs:
                found.append(f"{kind} {name} (not among those received)")
            elif name not in ours:
                found.append(f"{kind} {name} (received, not in the store)")
            else:
                found += _differing_fields(f"{kind} {name}", asdict(ours[name]), asdict(theirs[name]))
    return found or ["the order of tables or dense parameters"]


def _differing_fields(name: str, here: dict[str, Any], given: dict[str, Any]) -> list[str]:
    return [
        f"{name} ({field}={value}, received {given[field]})"
        for field, value in here.items()
        if value != given[field]
    ]
