"""Which checkpoints are kept so that a store can be taken back: never many, and always one from not long before."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cuckooflow.embedding_store.checkpoint_chain import HISTORY_PARTS, prune
from cuckooflow.embedding_store.checkpoint_files import CheckpointWriter, checkpoints

NOW_S = 1_800_000_000.0


def write(data: Path, number: int, at_s: float, base: str | None = None) -> None:
    writer = CheckpointWriter(data, number)
    writer.commit({"base": None if base is None else {"name": base, "crc32": 0}})
    os.utime(data / f"checkpoint-{number:08d}" / "manifest.json", (at_s, at_s))


def numbers(data: Path) -> list[int]:
    return [number for number, _ in checkpoints(data)]


@pytest.mark.parametrize("every_s", [7.0, 30.0, 90.0, 250.0])
def test_any_moment_of_the_history_has_one_from_not_long_before(tmp_path: Path, every_s: float) -> None:
    history_s, part_s = 400.0, 400.0 / HISTORY_PARTS
    written: dict[int, float] = {}
    for number in range(1, 80):
        now_s = NOW_S + number * every_s
        write(tmp_path, number, now_s)
        written[number] = now_s
        prune(tmp_path, history_s, now_s)
        kept = [written[n] for n in numbers(tmp_path)]
        assert len(kept) <= 2 + HISTORY_PARTS + 2
        assert kept[-1] == now_s
        for back_s in range(0, int(min(history_s, now_s - written[1])) + 1, 10):
            moment = now_s - back_s
            assert moment - max(at for at in kept if at <= moment) <= 2 * part_s + every_s


def test_without_a_history_the_newest_two_chains_stay(tmp_path: Path) -> None:
    for number in range(1, 9):
        base = None if number % 2 else f"checkpoint-{number - 1:08d}"
        write(tmp_path, number, NOW_S + number, base)
        prune(tmp_path)
    assert numbers(tmp_path) == [5, 6, 7, 8]


def test_of_older_chains_their_full_ones_stay_alone(tmp_path: Path) -> None:
    for number in range(1, 13):
        base = None if number % 2 else f"checkpoint-{number - 1:08d}"
        write(tmp_path, number, NOW_S + 100 * number, base)
        prune(tmp_path, 800.0, NOW_S + 100 * number)
    assert numbers(tmp_path) == [3, 5, 7, 9, 10, 11, 12]
