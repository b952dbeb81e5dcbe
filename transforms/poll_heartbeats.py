"""When a poller with nothing new speaks all the same."""

from __future__ import annotations

from cuckooflow.transforms.poll_options import PollOptions
from cuckooflow.transforms.quiet import pause_us


class Heartbeats:
    """Less often the longer nothing has come, see :class:`PollOptions`.

    Args:
        options: of the poller.
        spoken_us: the wall clock when it last spoke; None: never.
    """

    def __init__(self, options: PollOptions, spoken_us: int | None = None) -> None:
        self._options = options
        self.spoken_us = spoken_us
        self._rows_us: int | None = None

    def note_rows(self, now_us: int) -> None:
        """Rows have come."""
        self._rows_us = now_us

    def is_due(self, now_us: int) -> bool:
        """Whether to speak now, whatever there is."""
        if self._rows_us is None:
            self._rows_us = now_us
        quiet_us = now_us - self._rows_us
        every_us = pause_us(quiet_us, self._options.heartbeat_us, self._options.heartbeat_max_us)
        return self.spoken_us is None or now_us - self.spoken_us >= every_us
