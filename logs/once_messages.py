"""Messages that are handed out once, as the one partition of a log: numbered, and each known for a while.

* A message is called by its id: the number itself, as Google's are, or 63 bits of a hash of another.
* Which of the last ``remember`` messages were read is state, so one that is delivered again is left out, also
  after a recovery.
* Messages come in no order: the watermark follows the order in which they came, so which are late is not the same
  in every run. That nothing came for a while is the only sign that there is nothing.
"""

from __future__ import annotations

import base64
import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from cuckooflow.logs.contract import MessageBatch, Receipts
from cuckooflow.logs.pubsub_address import PubSubAddress


class Message(NamedTuple):
    """One message.

    Attributes:
        id: the service's, unique in the topic.
        publish_us: microseconds since the epoch.
        data: its bytes.
        receipt: to acknowledge it by; None where somebody else does.
    """

    id: str
    publish_us: int
    data: bytes
    receipt: str | None = None


class OnceMessages:
    """Implements :class:`~cuckooflow.logs.contract.OnceReader` over what :meth:`give` gave. Not thread-safe."""

    def __init__(self, address: PubSubAddress) -> None:
        self.address = address
        self._here: deque[Message] = deque()
        self._known: dict[int, None] = {}
        self._state: dict[str, str] | None = None
        self._receipts: list[str] = []
        self._repeated = 0

    @property
    def name(self) -> str:
        """The subscription."""
        return self.address.subscription

    def give(self, messages: Sequence[Message]) -> None:
        """Have these read next."""
        self._here.extend(messages)

    def take_back(self) -> list[Message]:
        """Those that were given and not read yet."""
        left = list(self._here)
        self._here.clear()
        return left

    def incarnation(self) -> str:
        """The subscription's name: a recreated one cannot be told from it."""
        return self.address.path

    def partitions(self) -> Sequence[int]:
        """One."""
        return (0,)

    def start_offset(self, partition: int) -> int:  # noqa: ARG002
        """0: numbers begin with the job."""
        return 0

    def end_offset(self, partition: int) -> int:
        """None can be known.

        Raises:
            ReadOnceLog: always.
        """
        raise self.address.read_once(f"the end of partition {partition}")

    def sealed(self, partition: int) -> bool:  # noqa: ARG002
        """Never."""
        return False

    def read_range(self, partition: int, first: int, last: int) -> Iterator[MessageBatch]:
        """Not here.

        Raises:
            ReadOnceLog: always.
        """
        raise self.address.read_once(f"a range of partition {partition}, {first} to {last}")

    def read(
        self, partition: int, offset: int, max_messages: int = 65_536, max_bytes: int = 16 << 20
    ) -> MessageBatch:
        """What has come since the last read, numbered from ``offset`` on; known messages are holes."""
        fresh: list[Message] = []
        labels: list[int] = []
        offsets: list[int] = []
        number, size = offset, 0
        while self._here and len(fresh) < max_messages:
            size += len(self._here[0].data)
            if fresh and size > max_bytes:
                break
            message = self._here.popleft()
            label = label_of(message.id)
            if message.receipt is not None:
                self._receipts.append(message.receipt)
            if label in self._known:
                self._repeated += 1
            else:
                self._known[label] = None
                fresh.append(message)
                labels.append(label)
                offsets.append(number)
            number += 1
        if number > offset:
            self._state = None
            for label in list(self._known)[: max(0, len(self._known) - self.address.remember)]:
                del self._known[label]
        return MessageBatch(
            partition,
            np.array(offsets, np.int64),
            np.array([message.publish_us for message in fresh], np.int64),
            pa.array([message.data for message in fresh], pa.binary()),
            number,
            labels=np.array(labels, np.int64),
        )

    def restore(self, state: Any) -> None:
        """See :class:`~cuckooflow.logs.contract.OnceReader`."""
        known = np.frombuffer(base64.b64decode(state["known"]), "<i8")
        self._known = dict.fromkeys(known.tolist())

    def state(self) -> Any:
        """See :class:`~cuckooflow.logs.contract.OnceReader`."""
        if self._state is None:
            known = np.fromiter(self._known, np.dtype("<i8"), len(self._known))
            self._state = {"known": base64.b64encode(known.tobytes()).decode()}
        return self._state

    def keep(self) -> None:
        """See :class:`~cuckooflow.logs.contract.OnceReader`; nothing waits here."""

    def receipts(self) -> Receipts:
        """See :class:`~cuckooflow.logs.contract.OnceReader`."""
        found = Receipts(tuple(self._receipts), self._repeated, len(self._receipts))
        self._receipts, self._repeated = [], 0
        return found

    def close(self) -> None:
        """Nothing to give back."""


def label_of(message_id: str) -> int:
    """What a message is called by.

    >>> label_of("1234567890"), label_of("m1") == label_of("m1")
    (1234567890, True)
    """
    if message_id.isascii() and message_id.isdecimal() and len(message_id) <= 18:
        return int(message_id)
    return int.from_bytes(hashlib.blake2b(message_id.encode(), digest_size=8).digest()) >> 1
