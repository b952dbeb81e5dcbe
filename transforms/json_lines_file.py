"""Lines of a file, in batches, with the byte that each begins at; from any byte on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from cuckooflow.errors import MessageTooLarge

#: A longer line is refused, default 64 MiB.
LINE_BYTES_MAX = 64 << 20


def lines_of(
    file: Any, first: int, last: int | None, batch_bytes: int
) -> Iterator[tuple[list[bytes], npt.NDArray[np.int64], float]]:
    r"""The lines that begin at ``first <= byte < last``, without their line breaks.

    Args:
        file: a binary file; it is read from its beginning unless it can seek.
        first: where to begin; a line that began before is left to who reads what is before.
        last: None for the end of the file.
        batch_bytes: of a batch, roughly.

    Yields:
        lines, (n,) first bytes, and the share of the span that they are (1 where ``last`` is None).

    Raises:
        MessageTooLarge: a line is over :data:`LINE_BYTES_MAX`.

    >>> import io
    >>> [lines for lines, _, _ in lines_of(io.BytesIO(b"ab\ncd\nef"), 1, 4, 100)]
    [[b'cd']]
    """
    at, rest = first, b""
    if first:
        # A line begins here iff the byte before ends one.
        file.seek(first - 1)
        rest, found = _until_line_break(file)
        if not found:
            return
        at = first - 1 + found
    while last is None or at < last:
        block = file.read(batch_bytes)
        blob = rest + block
        cut = blob.rfind(b"\n") + 1 if block else len(blob)
        if cut == 0 and block:
            if len(blob) > LINE_BYTES_MAX:
                raise MessageTooLarge(
                    f"expected lines of at most {LINE_BYTES_MAX} bytes, received a longer one"
                )
            rest = blob
            continue
        rest = blob[cut:]
        lines = blob[:cut].split(b"\n")
        if not lines[-1]:
            lines.pop()
        lengths = np.fromiter((len(line) + 1 for line in lines), np.int64, len(lines))
        starts = at + np.cumsum(lengths) - lengths
        keep = len(lines) if last is None else int(np.searchsorted(starts, last))
        if keep:
            share = 1.0 if last is None else min(1.0, cut / max(1, last - first))
            yield [line.removesuffix(b"\r") for line in lines[:keep]], starts[:keep], share
        at += cut
        if not block:
            return


def _until_line_break(file: Any) -> tuple[bytes, int]:
    """What follows the next line break, as far as it was read, and how many bytes lie up to it; 0 for none."""
    passed = 0
    while block := file.read(1 << 16):
        at = block.find(b"\n")
        if at >= 0:
            return block[at + 1 :], passed + at + 1
        passed += len(block)
    return b"", 0
