"""Files written and read in pieces past the page cache hold the same bytes as ordinary ones."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cuckooflow.embedding_store import direct_files
from cuckooflow.embedding_store.direct_files import BLOCK_BYTES, BUFFER_BYTES, read_pieces, write_pieces

SIZES = st.integers(0, 3 * BLOCK_BYTES) | st.sampled_from(
    [BUFFER_BYTES - 1, BUFFER_BYTES, BUFFER_BYTES + 1, 2 * BUFFER_BYTES, 2 * BUFFER_BYTES + BLOCK_BYTES]
)


@given(st.lists(SIZES, max_size=4), st.sampled_from([1, 16, 80, 272, 12_304]))
@example([BUFFER_BYTES, 1, BUFFER_BYTES], 272)
@settings(max_examples=25, deadline=None)
def test_a_file_holds_its_pieces_and_is_read_in_whole_units(sizes: list[int], unit: int) -> None:
    rng = np.random.default_rng(sum(sizes))
    pieces = [rng.integers(0, 256, size, np.uint8) for size in sizes]
    content = b"".join(piece.tobytes() for piece in pieces)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows"
        path.write_bytes(b"longer than what comes" * 1_000)
        write_pieces(path, pieces)
        assert path.read_bytes() == content
        read = [piece.copy() for piece in read_pieces(path, unit, len(content))]
    assert b"".join(piece.tobytes() for piece in read) == content
    assert all(len(piece) % unit == 0 for piece in read[:-1])


def test_a_file_that_ends_early_gives_what_it_has(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    content = np.arange(3 * BUFFER_BYTES // 2 + 5, dtype=np.uint64).view(np.uint8)[: BUFFER_BYTES + 777]
    write_pieces(path, [content])
    assert np.array_equal(np.concatenate([p.copy() for p in read_pieces(path, 1, 10**9)]), content)
    assert list(read_pieces(path, 1, 0)) == []


def test_without_direct_access_the_bytes_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = direct_files.os.open

    def refuse(path: Path, flags: int, *rest: int) -> int:
        if flags & direct_files.os.O_DIRECT:
            raise OSError(22, "Invalid argument")
        return opened(path, flags, *rest)

    monkeypatch.setattr(direct_files.os, "open", refuse)
    content = np.arange(100_001, dtype=np.uint64).view(np.uint8)[:-3]
    write_pieces(tmp_path / "rows", [content])
    (read,) = read_pieces(tmp_path / "rows", 8, len(content))
    assert np.array_equal(read, content)


def test_an_error_of_the_pieces_comes_through(tmp_path: Path) -> None:
    def broken():
        yield np.zeros(2 * BUFFER_BYTES, np.uint8)
        raise RuntimeError("no more rows")

    with pytest.raises(RuntimeError, match="no more rows"):
        write_pieces(tmp_path / "rows", broken())
