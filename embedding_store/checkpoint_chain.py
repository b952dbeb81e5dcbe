"""Checkpoints that hold just what changed: which stand on which, and when a full one is due.

A *full* checkpoint holds all rows. An *incremental* one holds the rows touched since the checkpoint before it,
its *base*, and names it; together with its base, that one's base and so on to a full one it is a *chain*. It
can be restored while every link of its chain is whole, else the checkpoint before it is tried. Filters,
dense parameters and marks are whole in every checkpoint. Of a table whose rows may go away an incremental one also
says which went; where that is not remembered any more (more than the store's ``delta_backlog_max``), it is a full one.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cuckooflow.embedding_store.checkpoint_files import CheckpointReader, checkpoints, written_s
from cuckooflow.errors import CheckpointDamaged

#: Whole chains kept: the newest and the one before it.
CHAINS_KEPT = 2
#: Into so many equal parts ``history_s`` is divided; of each the first full one is kept.
HISTORY_PARTS = 4


@dataclass(frozen=True)
class CheckpointPolicy:
    """When a checkpoint is a full one; otherwise it is incremental.

    Attributes:
        incrementals_max: links of a chain after its full one, default 8; more make a restore slower, and
            every link is one more file that can be damaged. 0: every checkpoint is a full one.
        chain_share_max: a full one is due once the incrementals have more than this share of their full
            one's bytes, default 0.5. Bounds the disk: about 2 x (1 + share) of the store's size.
        full_below_bytes: where the full one is smaller than this, default 64 MiB, writing less gains nothing.
        cut_bytes_max: rows that change while a checkpoint is written are kept as they were in so many bytes of memory,
            default 256 MiB; past them a push waits until more is on disk.
        cut_wait_s: how many seconds a push waits for that at most, default 20; then the checkpoint is given up,
            which fails with CheckpointGivenUp, and pushes go on.
        history_s: so many seconds back a full one is kept for every quarter of them, besides the newest two chains; default
            0, none. Costs up to 6 x the store's size on disk. Whoever wants to take the store back (:mod:`rewinding`)
            finds what is older than the newest two chains only here.
    """

    incrementals_max: int = 8
    chain_share_max: float = 0.5
    full_below_bytes: int = 64 << 20
    cut_bytes_max: int = 256 << 20
    cut_wait_s: float = 20.0
    history_s: float = 0.0

    def is_full_due(self, newest: Link | None) -> bool:
        """Whether the checkpoint after ``newest`` is to be a full one."""
        return (
            newest is None
            or newest.full_bytes < self.full_below_bytes
            or newest.incrementals >= self.incrementals_max
            or newest.incremental_bytes > self.chain_share_max * newest.full_bytes
        )


@dataclass(frozen=True)
class Link:
    """A committed checkpoint, as the base of the next.

    Attributes:
        name, crc32: its folder and its manifest's checksum.
        epoch: the core's when it was cut; rows touched later have a greater one.
        full_bytes, incremental_bytes: of its chain's full one, and of all others together.
        incrementals: how many these are.
    """

    name: str
    crc32: int
    epoch: int
    full_bytes: int
    incremental_bytes: int = 0
    incrementals: int = 0

    def next(self, name: str, crc32: int, epoch: int, size: int) -> Link:
        """The incremental one of ``size`` bytes that stands on this."""
        return Link(name, crc32, epoch, self.full_bytes, self.incremental_bytes + size, self.incrementals + 1)


def base_in_manifest(base: Link | None) -> dict[str, Any] | None:
    """What a manifest says of its base; None for a full one."""
    return None if base is None else {"name": base.name, "crc32": base.crc32}


def read_chain(folder: Path) -> list[CheckpointReader]:
    """A checkpoint and those it stands on, newest first.

    Raises:
        CheckpointDamaged: a manifest of the chain is absent, damaged, or not the one that was stood on.
    """
    readers = [CheckpointReader(folder)]
    names = {folder.name}
    while (base := readers[-1].body.get("base")) is not None:
        where = folder.with_name(base["name"])
        try:
            if base["name"] in names:
                raise CheckpointDamaged("it stands on itself")
            reader = CheckpointReader(where)
            if reader.crc32 != base["crc32"]:
                raise CheckpointDamaged("it is another one of this name")
        except CheckpointDamaged as error:
            raise CheckpointDamaged(
                f"checkpoint {folder} stands on {base['name']}, which cannot be used: {error}"
            ) from error
        names.add(base["name"])
        readers.append(reader)
    return readers


def newest_link(readers: list[CheckpointReader]) -> Link:
    """A restored chain as the base of the next checkpoint: all its rows have the epoch 0."""
    newest, *_, full = [readers[0], *readers]
    increments = readers[:-1]
    return Link(
        newest.folder.name,
        newest.crc32,
        0,
        full.bytes(),
        sum(reader.bytes() for reader in increments),
        len(increments),
    )


def prune(data: Path, history_s: float = 0.0, now_s: float = 0.0) -> None:
    """Keep the newest chains, and of a time before them a few full ones; remove the rest and what is half-written.

    The newest goes first, so that a kill leaves whole chains. A manifest that cannot be read makes its
    checkpoint count for nothing: what is kept is enough without it.

    Args:
        history_s: how far back, see :class:`CheckpointPolicy`.
        now_s: the wall clock, seconds since the epoch.
    """
    found = [folder for _, folder in checkpoints(data)]
    fulls = [folder for folder in found if _is_full(folder)]
    first_kept = found.index(fulls[-CHAINS_KEPT]) if len(fulls) >= CHAINS_KEPT else 0
    kept = _history(fulls[:-CHAINS_KEPT], history_s, now_s)
    for folder in reversed(found[:first_kept]):
        if folder in kept:
            continue
        doomed = folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(doomed, ignore_errors=True)
        folder.rename(doomed)
    for folder in data.glob(".checkpoint-*.tmp"):
        shutil.rmtree(folder, ignore_errors=True)


def _history(fulls: list[Path], history_s: float, now_s: float) -> set[Path]:
    """Of ascending full ones the first of each part of the time, back to the last one from before all of it.

    The parts do not move with the clock, so one that is kept stays until it is too old.
    """
    part_s = history_s / HISTORY_PARTS
    firsts: dict[int, Path] = {}
    for folder in fulls if part_s > 0 else ():
        firsts.setdefault(int(written_s(folder) // part_s), folder)
    kept = list(firsts.values())
    before = [at for at, folder in enumerate(kept) if written_s(folder) <= now_s - history_s]
    return set(kept[before[-1] if before else 0 :])


def _is_full(folder: Path) -> bool:
    try:
        return CheckpointReader(folder).body.get("base") is None
    except CheckpointDamaged:
        return False
