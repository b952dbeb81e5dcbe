"""Take a store back to an older checkpoint: those after it are put aside, so that the next start restores it."""

from __future__ import annotations

from pathlib import Path

from cuckooflow.embedding_store.checkpoint import read_checkpoint
from cuckooflow.embedding_store.checkpoint_files import checkpoints
from cuckooflow.embedding_store.data_folder import DataFolder
from cuckooflow.embedding_store.durable import sync_folder
from cuckooflow.embedding_store.marks import Marks
from cuckooflow.embedding_store.shards import Ownership
from cuckooflow.errors import CheckpointNotFound


class Rewinding:
    """A store's folder, locked, with the checkpoint that is to be its newest, read whole. Close it in the end.

    Args:
        data: folder of a store, or of one shard, which is not served.
        name: of the checkpoint.

    Attributes:
        data, name: as given.
        marks: where the store will stand.

    Raises:
        CheckpointNotFound: there is no store, or no checkpoint of this name.
        CheckpointDamaged: it is not whole.
        StoreLocked: the store is served.
    """

    def __init__(self, data: Path, name: str) -> None:
        if not (data / "store.json").exists():
            raise CheckpointNotFound(
                f"{data} holds no store. Name the data folder of a store, or of a shard."
            )
        self.data, self.name = data, name
        self._folder = DataFolder(data)
        try:
            self.marks, self._later = self._read()
        except BaseException:
            self._folder.close()
            raise

    def _read(self) -> tuple[Marks, list[Path]]:
        config = self._folder.config()
        assert config is not None
        there = [path for _, path in checkpoints(self.data)]
        names = [path.name for path in there]
        if self.name not in names:
            raise CheckpointNotFound(
                f"expected {self.name} in {self.data}, found {', '.join(names) or 'no checkpoint'}."
            )
        at = names.index(self.name)
        marks = read_checkpoint(there[at], config, Ownership(config, self._folder.shard()))[1]
        return marks, there[at + 1 :]

    def apply(self) -> list[str]:
        """Rename the newer ones to ``rewound-...``, never delete them; their names."""
        for path in reversed(self._later):  # the newest first: killed in between, an older one is newest
            path.rename(_free_name(path))
            sync_folder(self.data)
        return [path.name for path in self._later]

    def close(self) -> None:
        """Unlock the folder."""
        self._folder.close()


def _free_name(path: Path) -> Path:
    """After one rewinding another store may have written a checkpoint of the same number."""
    name, number = path.with_name(f"rewound-{path.name}"), 1
    while name.exists():
        number += 1
        name = path.with_name(f"rewound-{path.name}-{number}")
    return name
