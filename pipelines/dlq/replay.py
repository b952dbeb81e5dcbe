"""Replay: the original bytes of dead letters, or mended ones, appended to the log that they came from.

Each letter goes once into the partition that it came from, whatever is killed and however often it is asked
for; see :mod:`~cuckooflow.pipelines.dlq.ledger`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path

import pyarrow as pa

from cuckooflow.errors import OffsetOutOfRange, SpecError
from cuckooflow.logs.address import LocalAddress, LogAddress
from cuckooflow.logs.contract import LogReader, LogWriter
from cuckooflow.pipelines.dlq.ledger import Ledger, look_for
from cuckooflow.pipelines.dlq.letters import Letter, Place
from cuckooflow.transforms.arrow_messages import IPC_MAGIC
from cuckooflow.transforms.batch_bytes import decode_stream, encode_batch

#: What is appended at once, between an intent and its outcome: so many messages, or bytes, at most.
BATCH_MESSAGES = 500
BATCH_BYTES = 4 << 20

#: (original bytes, what is known of the letter) -> bytes to append, or None to leave the letter out.
Mend = Callable[[bytes, dict[str, object]], bytes | None]


@dataclass
class ReplayCounts:
    """What became of the letters that were asked for.

    Attributes:
        replayed: appended now.
        already: had been appended before.
        left_out: the script that mends said so.
        empty: a deletion mark, or a further item of a message that comes back with its first one.
        gone: their message is not kept any more, neither in the letter nor in its log.
        refused_again: had been put back as they are, and were refused again.
        unknown_log: of a log that is no input of the job.
        read_only: of an input of files: a file with what they should have been is put beside the others.
    """

    replayed: int = 0
    already: int = 0
    left_out: int = 0
    empty: int = 0
    gone: int = 0
    refused_again: int = 0
    unknown_log: int = 0
    read_only: int = 0

    def __str__(self) -> str:
        return " ".join(f"{name}={count}" for name, count in asdict(self).items())


@dataclass
class Replay:
    """A replay of letters into their logs.

    Attributes:
        targets: name -> address, of the logs that letters may go back to.
        ledger: open for writing.
        mend: see :data:`Mend`; None appends the original bytes.
        again: also letters of what was put back before and was refused again.
        read_only: names of the inputs that nothing is appended to.
        now_us: the clock that gives append times.
    """

    targets: Mapping[str, LogAddress]
    ledger: Ledger
    mend: Mend | None = None
    again: bool = False
    read_only: frozenset[str] = frozenset()
    now_us: Callable[[], int] = lambda: time.time_ns() // 1_000
    counts: ReplayCounts = field(default_factory=ReplayCounts)

    def run(self, letters: Iterable[Letter], dry: bool = False, limit: int | None = None) -> ReplayCounts:
        """Settle what a killed replay left, then put back what is not back yet.

        Args:
            letters: those that are asked for.
            dry: append nothing; ``replayed`` counts what would be.
            limit: messages to append at most; None for no bound.

        Raises:
            LogLocked: the producer of a local log writes it; stop it meanwhile.
            LogUnavailable: a broker is away; run it again.
            MendFailed: the script failed.
        """
        with contextlib.ExitStack() as stack:
            readers = {
                name: stack.enter_context(contextlib.closing(address.open_reader()))
                for name, address in self.targets.items()
            }
            incarnations = {name: reader.incarnation() for name, reader in readers.items()}
            if not dry:
                self._settle(readers, incarnations)
            chosen = islice(self._chosen(letters, readers, self.ledger.replayed(incarnations)), limit)
            if dry:
                self.counts.replayed += sum(1 for _ in chosen)
                return self.counts
            logs: dict[tuple[str, int], _Target] = {}
            for place, value in chosen:
                target = logs.get(place[:2])
                if target is None:
                    target = self._open(place, readers[place.log], incarnations[place.log])
                    logs[place[:2]] = target
                    stack.callback(target.writer.close)
                target.held.append((place, value))
                if len(target.held) >= BATCH_MESSAGES or target.held_bytes >= BATCH_BYTES:
                    self._append(target)
            for target in logs.values():
                self._append(target)
        return self.counts

    def _open(self, place: Place, reader: LogReader, incarnation: str) -> _Target:
        if place.partition not in reader.partitions():
            raise SpecError(f"expected letters of partitions that {place.log} has, received one of {place}")
        writer = self.targets[place.log].open_writer([place.partition])
        return _Target(place.log, place.partition, incarnation, reader, writer)

    def _settle(self, readers: Mapping[str, LogReader], incarnations: Mapping[str, str]) -> None:
        for intent in self.ledger.unsettled():
            if incarnations.get(intent.log) == intent.incarnation:
                own_time = isinstance(self.targets[intent.log], LocalAddress)
                self.ledger.settle(intent, look_for(intent, readers[intent.log], own_time))
            else:
                self.ledger.settle(intent, [None] * len(intent.places))

    def _chosen(
        self,
        letters: Iterable[Letter],
        readers: Mapping[str, LogReader],
        replayed: Mapping[Place, tuple[str, int, int]],
    ) -> Iterator[tuple[Place, bytes]]:
        back = set(replayed.values())
        seen: set[Place] = set()
        for letter in letters:
            place = letter.place
            if place.log in self.read_only:
                self.counts.read_only += 1
            elif place.log not in readers:
                self.counts.unknown_log += 1
            elif place in replayed or place in seen:
                self.counts.already += 1
            elif letter.value is None and not letter.left_out:
                self.counts.empty += 1
            elif place[:3] in back and not self.again:
                self.counts.refused_again += 1
            else:
                value = letter.value if letter.original else read_original(readers[place.log], place)
                if value is None:
                    self.counts.gone += 1
                    continue
                mended = value if self.mend is None else self.mend(value, letter.to_dict())
                if mended is None:
                    self.counts.left_out += 1
                else:
                    seen.add(place)
                    yield place, mended

    def _append(self, target: _Target) -> None:
        if not target.held:
            return
        append_us = self.now_us()
        end = target.reader.end_offset(target.partition)
        intent = self.ledger.intend(
            target.log, target.incarnation, target.partition, end, append_us, target.held
        )
        first = target.writer.append(target.partition, [value for _, value in target.held], append_us)
        self.ledger.settle(intent, range(first, first + len(target.held)))
        self.counts.replayed += len(target.held)
        target.held.clear()


@dataclass
class _Target:
    """A partition that messages go back to, and those that wait to be appended together."""

    log: str
    partition: int
    incarnation: str
    reader: LogReader
    writer: LogWriter
    held: list[tuple[Place, bytes]] = field(default_factory=list)

    @property
    def held_bytes(self) -> int:
        return sum(len(value) for _, value in self.held)


def read_original(reader: LogReader, place: Place) -> bytes | None:
    """The bytes of a refused event in its log, of an Arrow message of several rows its row; None where they are gone."""
    if place.partition not in reader.partitions():
        return None
    try:
        batch = reader.read(place.partition, place.offset, max_messages=1)
    except OffsetOutOfRange:
        return None
    if not len(batch) or int(batch.offsets[0]) != place.offset or not batch.values[0].is_valid:
        return None
    value: bytes = batch.values[0].as_py()
    if place.row < 0 or value[:4] != IPC_MAGIC:
        return value
    rows = decode_stream(pa.py_buffer(value)).take(pa.array([place.row])).combine_chunks()
    return encode_batch(rows.to_batches()[0].replace_schema_metadata(None))


def load_mend(path: Path) -> Mend:
    """The function ``mend`` of a Python file.

    Raises:
        SpecError: there is no such file, or no such function in it.
    """
    import runpy

    from cuckooflow.errors import MendFailed

    try:
        found = runpy.run_path(str(path)).get("mend")
    except Exception as error:
        raise SpecError(
            f"expected a Python file with a function mend(value, letter), {path}: {error}"
        ) from error
    if not callable(found):
        raise SpecError(f"expected a function mend(value, letter) in {path}, found none")

    def mend(value: bytes, letter: dict[str, object]) -> bytes | None:
        try:
            answer = found(value, letter)
        except Exception as error:
            raise MendFailed(f"{path} failed for {letter}: {type(error).__name__}: {error}") from error
        if answer is not None and not isinstance(answer, bytes):
            raise MendFailed(f"expected bytes or None of mend in {path}, received {type(answer).__name__}")
        return answer

    return mend
