"""One partition of the examples log, trained into the store exactly once. No Beam.

The store's mark is the only truth about what was trained; this object may die at any moment. It buffers
rows until a batch is full or due, and pushes each batch with the range of the log that it is. Whatever
the store answers leads to every range being applied once:

- it stands inside the range: the range is cut there and sent again in pieces;
- it stands before the range (it was restored): what is missing is read from the log again and trained first;
- it stands past the range (the runner repeated a bundle, another trainer was faster): nothing happens;
- it has applied too much since the rows were read (``staleness_max``): the step is computed anew;
- a gradient is not finite: the rows become dead letters and the range is pushed empty.

A runner may bring elements in another order than the source made them: one that comes too early is held for
as long as a row may wait, and then what is missing before it is read from the log.

Invariant: ``_first`` is where the last push ended, ``_end`` where the buffer ends, and the buffer holds all
rows between the two. Not thread-safe; its owner locks.
"""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import pyarrow as pa

from cuckooflow.embedding_store.api import Floats, PushAnswer, ReadAt, Store, TablePush
from cuckooflow.errors import MarkMismatch, NonFiniteGradient, SpecError, StaleRows, StoreError
from cuckooflow.logs.contract import LogRange, Position
from cuckooflow.models.base import Model, StepResult
from cuckooflow.models.registry import COUNT_TABLE
from cuckooflow.transforms.beside_step import BesideStep
from cuckooflow.transforms.feature_feed import FeatureFeed
from cuckooflow.transforms.held_elements import HeldElements
from cuckooflow.transforms.log_again import LogAgain, RangeReader
from cuckooflow.transforms.log_rows import Piece, positions, rows_before
from cuckooflow.transforms.metric_names import STALENESS, STEPS, STEPS_STALE
from cuckooflow.transforms.ranges import RangeHeader, read_range_header
from cuckooflow.transforms.store_partition import StorePartition
from cuckooflow.transforms.training_options import TrainingOptions
from cuckooflow.transforms.training_output import (
    GRADIENT_NOT_FINITE,
    NOT_ENCODABLE,
    Output,
    dead_rows,
)
from cuckooflow.transforms.training_report import TrainingReport
from cuckooflow.transforms.training_rows import Correction, LateLabels, TrainingRows, training_rows

_log = logging.getLogger(__name__)


class Trainer:
    """Trains one partition.

    Args:
        store: where parameters and marks live.
        model: with the store's tables.
        reader_factory: opens the log for re-reading when a gap has to be filled; None where nothing can be
            read again.
        options: see :class:`TrainingOptions`.
        correction: of negative sampling.
        late_labels: what late positives do; default: taken back.
        predictions: give back every row's probabilities.
        before_push: told the rows of each step and the (B, L) probabilities that the model gave them, while the
            store still is as it was for these. A step that the store refuses comes again. Default: nobody is told.

    Raises:
        ValueError: ``before_push`` and ``overlap``: the store is never as it was for a step.
    """

    def __init__(
        self,
        store: Store,
        model: Model,
        reader_factory: Callable[[], RangeReader] | None,
        options: TrainingOptions,
        correction: Correction = "none",
        predictions: bool = False,
        late_labels: LateLabels | None = None,
        before_push: Callable[[TrainingRows, Floats], None] | None = None,
    ) -> None:
        if before_push is not None and options.overlap:
            raise ValueError("before_push goes without overlap, received both")
        self._store = store
        self._before_push = before_push
        self._model = model
        self._options = options
        self._correction = correction
        self._late_labels = late_labels
        self._place: StorePartition | None = None  # once the first element came
        self._again = LogAgain(reader_factory, options.fill_rows_max)
        self._first = self._end = Position(0)
        self._buffer: deque[TrainingRows] = deque()
        self._buffered = 0
        self._waiting_since_us: int | None = None
        self._checked_us: int | None = None
        self._report = TrainingReport(model.labels, options, correction, predictions)
        self._beside = BesideStep(store, model, options.overlap)
        self._held = HeldElements(options.held_elements_max, options.max_delay_us)
        self._feed: FeatureFeed | None = None
        if model.streaming is not None:
            self._feed = FeatureFeed(store, model.streaming, options, self._again)

    @property
    def position(self) -> Position:
        """Up to where the store has taken this partition."""
        sent = self._beside.sent
        return self._first if sent is None else sent.piece.first

    @property
    def waiting(self) -> bool:
        """Whether something is here that the store has not taken yet."""
        return self.position < self._end or bool(self._held)

    def accept(self, batch: pa.RecordBatch) -> Output:
        """Take the next element of the partition: rows with a :class:`RangeHeader`.

        Raises:
            TrainingGap: elements are missing and cannot be read again.
            WrongIncarnation: the log is not the one the store was trained on.
            OffsetOutOfRange: what must be read again was deleted by the log's retention.
            StoreError: the store refused, or is gone.
        """
        header = read_range_header(batch)
        out = Output()
        with self._all_or_reset():
            if self._place is None:
                self._open(header.range, header.start)
            self._held.add(header, batch)
            while (element := self._held.next(self._end, header.polled_us)) is not None:
                self._accept(*element, out)
        return out

    def flush(self, now_us: int) -> Output:
        """Push what waits, full batch or not: the input has paused for ``max_delay_us``."""
        out = Output()
        if self._place is not None and self.waiting:
            with self._all_or_reset():
                self._accept_held(out)
                self._drain(out, everything=True)
                self._tell(now_us, out, False)
        return out

    def finish(self, now_us: int) -> Output:
        """Push everything, and make sure that the store has everything. For a bounded input's end."""
        out = Output()
        if self._place is not None:
            with self._all_or_reset():
                self._accept_held(out)
                self._drain(out, everything=True)
                self._settle(out)
                self._tell(now_us, out, True)
        return out

    def reach(self, range_: LogRange) -> Output:
        """See that everything up to a range's end is here or in the store, from the log if need be.

        For a range whose rows came to a trainer that is no more; it begins where the source began.
        Errors as :meth:`accept`.
        """
        out = Output()
        with self._all_or_reset():
            if self._place is None:
                self._open(range_, range_.first)
            self._accept_held(out)
            self._bridge(range_.last, out)
        return out

    def close(self) -> None:
        """End the thread beside. What is buffered is left to who trains this partition next."""
        self._beside.close()

    @contextlib.contextmanager
    def _all_or_reset(self) -> Iterator[None]:
        """After an error nothing in memory is trusted: the next element starts again at the store's mark."""
        try:
            yield
        except BaseException:
            self._place = None
            self._end = self._first
            self._buffer.clear()
            self._buffered = 0
            self._held.clear()
            self._beside.forget()
            self._waiting_since_us = self._checked_us = None
            raise

    # --- what comes in --------------------------------------------------------------------------

    def _accept_held(self, out: Output) -> None:
        """Take what is held, and read what is missing before it."""
        while (element := self._held.next()) is not None:
            self._accept(*element, out)

    def _accept(self, header: RangeHeader, batch: pa.RecordBatch, out: Output) -> None:
        self._bridge(header.range.first, out)
        if header.range.last > self._end:
            self._append(batch, header, out)
        before = self._first
        self._drain(out, everything=header.end or self._due(header.polled_us))
        if self._first != before and self._waiting_since_us is not None:
            self._waiting_since_us = header.polled_us  # what is left came with this element
        if header.end:
            self._settle(out)
        else:
            self._check(header.polled_us, out)
        self._tell(header.polled_us, out, header.end)

    def _bridge(self, to: Position, out: Output) -> None:
        """Train what lies between the buffer's end and ``to``: elements that never came here."""
        if to > self._end:
            self._drain(out, everything=True)
            self._fill(self._end, to, out)
            self._first = self._end = to

    def _open(self, range_: LogRange, start: Position) -> None:
        # Where the partition is open already its mark stays, and that is where this trainer begins.
        self._place = StorePartition(self._store, range_, start, self._options.push_attempts_max)
        self._first = self._end = self._place.marks()[0]
        if self._feed is not None:
            self._feed.open(range_, start, self._first)
        self._report.measured = max(self._report.measured, self._first)

    @property
    def _partition(self) -> StorePartition:
        assert self._place is not None
        return self._place

    def _append(self, batch: pa.RecordBatch, header: RangeHeader, out: Output) -> None:
        if header.range.first < self._end:
            batch = batch.slice(rows_before(*positions(batch), self._end))
        rows = self._rows(batch, header.range._replace(first=self._end), out)
        if rows is not None:
            self._buffer.append(rows)
            self._buffered += len(rows)
        self._end = header.range.last
        if self._waiting_since_us is None:
            self._waiting_since_us = header.polled_us

    def _rows(self, batch: pa.RecordBatch, range_: LogRange, out: Output) -> TrainingRows | None:
        try:
            encodable = batch if self._feed is None else self._feed.take(batch, range_)
            if not batch.num_rows:
                return None
            rows = training_rows(self._model, encodable, self._correction, self._late_labels)
            return replace(rows, batches=(batch,))
        except SpecError as error:
            out.dead.append(dead_rows([batch], range_, NOT_ENCODABLE, str(error)))
            return None

    def _due(self, now_us: int) -> bool:
        since = self._waiting_since_us
        return since is not None and now_us - since >= self._options.max_delay_us

    # --- what goes out --------------------------------------------------------------------------

    def _drain(self, out: Output, everything: bool) -> None:
        """Train full batches from the buffer, and with ``everything`` what is left as well."""
        pieces: deque[Piece[TrainingRows]] = deque()
        first = self._first
        while self._buffered >= self._options.batch_size or (everything and self._buffered):
            rows = self._take(self._options.batch_size)
            last = self._buffer[0].position(0) if self._buffer else self._end
            pieces.append(Piece(first, last, rows))
            first = last
        if everything and first < self._end:
            pieces.append(Piece(first, self._end, None))
        idle = not pieces
        while pieces:
            piece = pieces.popleft()
            self._step(piece, out, pieces[0] if pieces else None)
            self._first = piece.last
        if everything or idle:
            self._see_sent(out)  # else the last push goes on beside the next element
        if self._first == self._end:
            self._waiting_since_us = None
        if self._feed is not None:
            self._feed.advance(self.position)

    def _take(self, count: int) -> TrainingRows:
        parts: list[TrainingRows] = []
        while count and self._buffer:
            rows = self._buffer.popleft()
            if len(rows) > count:
                self._buffer.appendleft(rows.slice(count, len(rows)))
                rows = rows.slice(0, count)
            parts.append(rows)
            count -= len(rows)
            self._buffered -= len(rows)
        return TrainingRows.concat(parts)

    def _train(
        self, piece: Piece[TrainingRows], out: Output, following: Piece[TrainingRows] | None = None
    ) -> None:
        """Push one range, whatever the store answers."""
        self._partition.apply(
            piece,
            lambda part, last: self._push(part, out, following if last else None),
            lambda first, last: self._reread(first, last, out),
        )

    def _fill(self, first: Position, last: Position, out: Output) -> None:
        """Train what lies between two positions from the log."""
        while first < last:
            for piece in self._reread(first, last, out):
                self._train(piece, out)
                first = piece.last

    def _reread(self, first: Position, last: Position, out: Output) -> list[Piece[TrainingRows]]:
        """The next batches of a gap, from the log."""
        batch, until, dead = self._again.read(self._partition.range(first, last))
        if first >= self._report.measured and dead.num_rows:
            out.dead.append(dead)
        rows = self._rows(batch, self._partition.range(first, until), out)
        if rows is None:
            return [Piece(first, until, None)]
        cuts = [
            rows.position(n) for n in range(self._options.batch_size, len(rows), self._options.batch_size)
        ]
        return Piece(first, until, rows).cut(cuts)

    def _step(self, piece: Piece[TrainingRows], out: Output, following: Piece[TrainingRows] | None) -> None:
        """Train a piece of the buffer, its push beside the next one's step where that is wanted."""
        if not self._beside.overlaps or piece.rows is None:
            self._see_sent(out)
            self._train(piece, out, following)
            return
        result = self._compute(piece, piece.rows, following)
        self._see_sent(out)
        self._beside.send(piece, piece.rows, result, partial(self._send, piece, piece.rows, result))

    def _see_sent(self, out: Output) -> None:
        """See that the store has taken what was sent, whatever it answered."""
        sent = self._beside.take_sent()
        if sent is None:
            return
        try:
            answer = sent.answer.result()
        except (MarkMismatch, NonFiniteGradient, StaleRows) as refused:
            out.counted[STEPS_STALE] += isinstance(refused, StaleRows)
            self._train(sent.piece, out)
        else:
            self._learn(sent.rows, sent.result, answer, out)

    def _push(self, piece: Piece[TrainingRows], out: Output, following: Piece[TrainingRows] | None) -> None:
        rows, range_ = piece.rows, self._partition.range(piece.first, piece.last)
        if rows is None or not len(rows):
            self._store.push(range_, {}, {}, self._report.event_time_us or 0)
            return
        try:
            result, answer = self._step_and_send(piece, rows, out, following)
        except NonFiniteGradient as error:
            # Said before the mark moves: what was going to tell of these rows may be killed in between.
            _log.error(
                "event=%s partition=%d first=%d:%d last=%d:%d rows=%d",
                GRADIENT_NOT_FINITE,
                range_.partition,
                *range_.first,
                *range_.last,
                len(rows),
            )
            self._store.push(range_, {}, {}, int(rows.times_us.max()))
            out.dead.append(dead_rows(rows.batches, range_, GRADIENT_NOT_FINITE, str(error)))
            return
        self._learn(rows, result, answer, out)

    def _step_and_send(
        self,
        piece: Piece[TrainingRows],
        rows: TrainingRows,
        out: Output,
        following: Piece[TrainingRows] | None,
    ) -> tuple[StepResult, PushAnswer]:
        """One step, anew from fresh rows for as long as too many others come in between."""
        for _ in range(self._options.push_attempts_max):
            result = self._compute(piece, rows, following)
            following = None
            try:
                return result, self._send(piece, rows, result)
            except StaleRows as stale:
                out.counted[STEPS_STALE] += 1
                refused = stale
        raise StoreError(
            f"expected the store to take {self._partition.range(piece.first, piece.last)} within "
            f"{self._options.push_attempts_max} attempts, received {refused}; raise training.staleness_max, or run fewer "
            "trainers"
        ) from refused

    def _compute(
        self, piece: Piece[TrainingRows], rows: TrainingRows, following: Piece[TrainingRows] | None
    ) -> StepResult:
        prepared = self._beside.pulled(piece)
        self._beside.fetch(following)
        return self._model.train_step(prepared, rows.targets, self._options.batch_size)

    def _send(self, piece: Piece[TrainingRows], rows: TrainingRows, result: StepResult) -> PushAnswer:
        if not result.finite():  # no shard is to take its part of such a step
            raise NonFiniteGradient("expected finite gradients, received NaN or infinity")
        if self._before_push is not None:
            self._before_push(rows, result.probabilities)
        range_ = self._partition.range(piece.first, piece.last)
        gradients = self._gradients(result)
        read = ReadAt(result.prepared.clock, self._options.staleness_max)
        return self._store.push(range_, gradients, result.dense_gradients, int(rows.times_us.max()), read)

    def _learn(self, rows: TrainingRows, result: StepResult, answer: PushAnswer, out: Output) -> None:
        if answer.applied:
            out.counted[STEPS] += 1
            out.counted[STALENESS] += answer.staleness
            self._report.learned(rows, result.probabilities, out)

    def _gradients(self, result: StepResult) -> dict[str, TablePush]:
        lookup = result.prepared.lookup
        pushes = {
            name: TablePush(lookup.ids, gradients, lookup.counts)
            for name, gradients in result.row_gradients.items()
        }
        if self._options.counting:
            occurred = -lookup.counts.astype(np.float32)[:, None]
            pushes[COUNT_TABLE] = TablePush(lookup.ids, occurred, lookup.counts)
        return pushes

    def _tell(self, now_us: int, out: Output, end: bool) -> None:
        self._report.tell(self._partition.log, self.position, now_us, out, end)

    # --- whether the store has it ----------------------------------------------------------------

    def _check(self, now_us: int, out: Output) -> None:
        """Every few seconds: whether the store still has what was pushed."""
        if self._checked_us is not None and now_us - self._checked_us < self._options.marks_interval_us:
            return
        self._checked_us = now_us
        self._see_sent(out)
        self._fill(self._partition.marks()[0], self._first, out)
        if self._feed is not None:
            self._feed.check()

    def _settle(self, out: Output) -> None:
        """Make sure that every bucket of the store has everything up to the last push."""
        self._partition.settle(self._first, lambda first, last: self._fill(first, last, out))
        if self._feed is not None:
            self._feed.check()
