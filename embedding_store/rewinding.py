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


def rewind(data: Path, name: str, dry_run: bool = False) -> tuple[Marks, list[str]]:
    """Make a checkpoint the newest of its folder. What is put aside is renamed to ``rewound-...``, never deleted.

    Args:
        data: folder of a store, or of one shard, which is not served.
        name: of the checkpoint.
        dry_run: look, and change nothing.

    Returns:
        The marks that the store will stand at, and the names of the checkpoints that were put aside.

    Raises:
        CheckpointNotFound: there is no store, or no checkpoint of this name.
        CheckpointDamaged: it is not whole.
        StoreLocked: the store is served.
    """
    if not (data / "store.json").exists():
        raise CheckpointNotFound(f"{data} holds no store. Name the data folder of a store, or of a shard.")
    folder = DataFolder(data)
    try:
        config = folder.config()
        assert config is not None
        there = checkpoints(data)
        names = [path.name for _, path in there]
        if name not in names:
            raise CheckpointNotFound(
                f"expected {name} in {data}, found {', '.join(names) or 'no checkpoint'}."
            )
        at = names.index(name)
        marks = read_checkpoint(there[at][1], config, Ownership(config, folder.shard()))[1]
        later = [path for _, path in there[at + 1 :]]
        if not dry_run:
            for path in reversed(later):  # the newest first: killed in between, an older one is newest
                path.rename(_free_name(path))
                sync_folder(data)
    finally:
        folder.close()
    return marks, [path.name for path in later]


def _free_name(path: Path) -> Path:
    """After one rewinding another store may have written a checkpoint of the same number."""
    name, number = path.with_name(f"rewound-{path.name}"), 1
    while name.exists():
        number += 1
        name = path.with_name(f"rewound-{path.name}-{number}")
    return name
