"""What lies in a store's folder, without opening the store: it may be served meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cuckooflow.embedding_store.api import Floats, Ids, StoreConfig
from cuckooflow.embedding_store.checkpoint import read_checkpoint
from cuckooflow.embedding_store.checkpoint_files import Bytes, checkpoints
from cuckooflow.embedding_store.config_json import config_from_file
from cuckooflow.embedding_store.data_folder import read_shard
from cuckooflow.embedding_store.native_core import NativeCore
from cuckooflow.embedding_store.row_images import table_rows, table_states
from cuckooflow.embedding_store.shards import Ownership
from cuckooflow.errors import CheckpointDamaged, CheckpointNotFound, StoreError


@dataclass(frozen=True)
class CheckpointReport:
    """One checkpoint.

    Attributes:
        name: of its folder.
        fault: what is wrong with it; None where it is whole.
        rows: table -> rows; empty where it is not whole.
        bytes: of its files.
        pushes_applied: how many pushes it holds; None where it is not whole.
    """

    name: str
    fault: str | None
    rows: dict[str, int]
    bytes: int
    pushes_applied: int | None


def identity(data: Path) -> tuple[StoreConfig, Ownership]:
    """The configuration of the store in a folder, and what the shard that lies there owns.

    Raises:
        CheckpointNotFound: the folder holds no store.
        SpecError, CheckpointDamaged: what says so is damaged.
    """
    file = Path(data) / "store.json"
    if not file.exists():
        raise CheckpointNotFound(f"{data} holds no store. Name the data folder of a store, or of a shard.")
    config = config_from_file(file)
    return config, Ownership(config, read_shard(Path(data)))


def verify(data: Path) -> list[CheckpointReport]:
    """Read every checkpoint of a folder as a restore would, oldest first: checksums, formats, sizes, ids.

    Takes the memory of one restored store.

    Raises:
        CheckpointNotFound: the folder holds no store.
    """
    config, owned = identity(data)
    found = []
    for _, folder in checkpoints(Path(data)):
        try:
            core, _, body = read_checkpoint(folder, config, owned)
        except (StoreError, KeyError, TypeError) as error:
            if folder.exists():  # else it was pruned meanwhile
                found.append(CheckpointReport(folder.name, str(error), {}, _bytes(folder), None))
            continue
        rows = {name: int(stats["rows"]) for name, stats in core.stats().items()}
        found.append(CheckpointReport(folder.name, None, rows, _bytes(folder), body.get("pushes_applied")))
    return found


class CheckpointRows:
    """The rows of a folder's newest whole checkpoint.

    Attributes:
        config: of the store.
        name: of the checkpoint.

    Raises:
        CheckpointNotFound: the folder holds no store, or no checkpoint.
        CheckpointDamaged: there are checkpoints, but none is whole.
    """

    def __init__(self, data: Path) -> None:
        self.config, owned = identity(data)
        self._core, self.name = _newest(Path(data), self.config, owned)

    def pieces(self, table: str) -> Iterator[tuple[Ids, Floats]]:
        """(n,) ids and (n, dim) weights of an embedding table, piece by piece."""
        return table_rows(self._core, self._core.number_of_kind(table, ("embedding",)))

    def states(self, table: str) -> Iterator[tuple[Ids, Bytes]]:
        """(n,) ids and the state, (n, bytes), of a counter or recent table, piece by piece."""
        return table_states(self._core, self._core.number_of_kind(table, ("counter", "recent")))


def _newest(data: Path, config: StoreConfig, owned: Ownership) -> tuple[NativeCore, str]:
    faults: list[str] = []
    for _, folder in reversed(checkpoints(data)):
        try:
            return read_checkpoint(folder, config, owned)[0], folder.name
        except CheckpointDamaged as error:
            faults.append(str(error))
    if faults:
        raise CheckpointDamaged(f"no checkpoint in {data} is whole: {'; '.join(faults)}")
    raise CheckpointNotFound(
        f"{data} holds no checkpoint yet. Let its store write one, or ask the running store."
    )


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*"))
