"""CRC-32C by the processor's instruction and by table, against RFC 3720 and a plain bit-by-bit one."""

from __future__ import annotations

import numpy as np
import pytest

from cuckooflow.embedding_store import _native


def plain(content: bytes, crc: int = 0) -> int:
    state = crc ^ 0xFFFFFFFF
    for byte in content:
        state ^= byte
        for _ in range(8):
            state = (state >> 1) ^ (0x82F63B78 if state & 1 else 0)
    return state ^ 0xFFFFFFFF


BOTH = pytest.mark.parametrize("crc32c", [_native.crc32c, _native.crc32c_by_table])


@BOTH
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_known_values(crc32c, content, expected):
    assert crc32c(np.frombuffer(content, np.uint8)) == expected


@BOTH
@pytest.mark.parametrize("size", [1, 7, 8, 9, 3_071, 3_072, 3_073, 9_999])
def test_any_length_address_and_cut(crc32c, size, rng):
    content = rng.integers(0, 256, size + 5, dtype=np.uint8)[5:]
    expected = plain(content.tobytes())
    assert crc32c(content) == expected
    for cut in (0, size // 3, size // 2, size):
        assert crc32c(content[cut:], crc32c(content[:cut])) == expected
