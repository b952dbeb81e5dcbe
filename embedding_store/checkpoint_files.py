"""A checkpoint on disk: a folder that appears whole, by one rename, with every file's checksum.

``checkpoint-00000007/`` holds ``manifest.json`` (its own checksum in it; configuration, marks, sizes and
CRC-32C of the other files), and for each table ``table-N.rows`` (row images as in memory: id uint64,
epoch uint32, step uint16, time of last touch uint16 in ticks of the table's clock, which is in the manifest,
weights and slots float32, padded to 16 bytes; little-endian) and
``table-N.filter``, for each dense parameter ``dense-N`` (step uint64, value, slots). Rows carry their
ids, from which their logical bucket follows, so a checkpoint can be dealt out to another number of shards.

An incremental one (its manifest names a ``base``) holds in ``table-N.rows`` the rows touched since its base, and in
``table-N.gone``, of a table whose rows may go away, the ids (uint64) evicted since; :mod:`checkpoint_chain` says
which stand on which.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from cuckooflow.embedding_store import _native
from cuckooflow.embedding_store.direct_files import read_pieces, write_pieces
from cuckooflow.embedding_store.durable import sync_folder
from cuckooflow.errors import CheckpointDamaged

#: 2: rows have a time of last touch, and a checkpoint may stand on another. 3: it may say which rows went;
#: files are checked by CRC-32C.
FORMAT = 3
PIECE_BYTES = 8 << 20

Bytes = npt.NDArray[np.uint8]

_NAME = re.compile(r"checkpoint-(\d{8,})")


def checkpoints(data: Path) -> list[tuple[int, Path]]:
    """(number, folder) of the checkpoints that were completed, ascending."""
    found = []
    for folder in data.iterdir() if data.is_dir() else ():
        match = _NAME.fullmatch(folder.name)
        if match and folder.is_dir():
            found.append((int(match.group(1)), folder))
    return sorted(found)


def written_s(folder: Path) -> float:
    """When a checkpoint was completed, seconds since the epoch."""
    return (folder / "manifest.json").stat().st_mtime


class CheckpointWriter:
    """Writes one checkpoint under a temporary name; :meth:`commit` gives it its own."""

    def __init__(self, data: Path, number: int) -> None:
        self._target = data / f"checkpoint-{number:08d}"
        self._folder = data / f".checkpoint-{number:08d}.tmp"
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir()
        self._files: dict[str, dict[str, int]] = {}
        self.crc32 = 0

    @property
    def bytes(self) -> int:
        """Of all files written so far."""
        return sum(file["bytes"] for file in self._files.values())

    def write(self, name: str, pieces: Iterable[Bytes]) -> None:
        """One file, piece by piece."""
        size = crc = 0

        def counted() -> Iterator[Bytes]:
            nonlocal size, crc
            for piece in pieces:
                crc = _native.crc32c(piece, crc)
                size += piece.nbytes
                yield piece

        write_pieces(self._folder / name, counted())
        self._files[name] = {"bytes": size, "crc32c": crc}

    def commit(self, body: dict[str, Any]) -> str:
        """Make the checkpoint durable and visible; its name."""
        body = {**body, "format": FORMAT, "files": self._files}
        text = json.dumps(body, sort_keys=True)
        self.crc32 = zlib.crc32(text.encode())
        envelope = json.dumps({"crc32": self.crc32, "body": text})
        with (self._folder / "manifest.json").open("w") as file:
            file.write(envelope)
            file.flush()
            os.fsync(file.fileno())
        sync_folder(self._folder)
        self._folder.rename(self._target)
        sync_folder(self._target.parent)
        return self._target.name

    def abandon(self) -> None:
        """Remove what was written."""
        shutil.rmtree(self._folder, ignore_errors=True)


def set_aside(folder: Path) -> None:
    """Rename a damaged checkpoint, so that it is neither tried again nor counted among those kept."""
    aside = folder.with_name(f"damaged-{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)
    sync_folder(folder.parent)


class CheckpointReader:
    """Reads one checkpoint, checking what it reads. ``crc32``: of its manifest."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.crc32 = 0
        self.body = self._manifest()
        self._files: dict[str, dict[str, int]] = self.body["files"]

    def bytes(self) -> int:
        """Of all its files."""
        return sum(file["bytes"] for file in self._files.values())

    def size(self, name: str) -> int:
        """The bytes that a file must have."""
        if name not in self._files:
            raise self._damaged(f"{name} is not in the manifest")
        return self._files[name]["bytes"]

    def pieces(self, name: str, unit_bytes: int = 1) -> Iterator[Bytes]:
        """A file's content; the last step raises if the checksum is not the manifest's.

        A piece is whole units of ``unit_bytes``, is checked while the caller uses it, and is overwritten once the next
        one was asked for.

        Raises:
            CheckpointDamaged: the file is absent, too short, too long or has other bytes.
        """
        left, crc = self.size(name), 0
        try:
            path = self.folder / name
            if path.stat().st_size > left:
                raise self._damaged(f"{name} is longer than its manifest says")
            with ThreadPoolExecutor(1) as checker:
                for piece in read_pieces(path, unit_bytes, left):
                    checking = checker.submit(_native.crc32c, piece, crc)
                    left -= piece.nbytes
                    try:
                        yield piece
                    finally:
                        crc = checking.result()
            if left:
                raise self._damaged(f"{name} ends {left} bytes early")
        except OSError as error:
            raise self._damaged(f"{name} cannot be read: {error}") from error
        if crc != self._files[name]["crc32c"]:
            raise self._damaged(f"{name} has another checksum than its manifest says")

    def _manifest(self) -> dict[str, Any]:
        try:
            envelope = json.loads((self.folder / "manifest.json").read_text())
            text = envelope["body"]
            if zlib.crc32(text.encode()) != envelope["crc32"]:
                raise self._damaged("manifest.json has another checksum than it says")
            body = json.loads(text)
            self.crc32 = envelope["crc32"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._damaged(f"manifest.json cannot be read: {error}") from error
        if body.get("format") != FORMAT:
            raise self._damaged(f"expected format {FORMAT}, received {body.get('format')}")
        return cast(dict[str, Any], body)

    def _damaged(self, why: str) -> CheckpointDamaged:
        return CheckpointDamaged(f"checkpoint {self.folder} is damaged: {why}. Restore an older one.")
