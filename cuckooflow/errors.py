"""The named errors of cuckooflow, in one place.

Every message says what was expected, what was received and what to do next. All derive from
:class:`CuckooflowError`, so a caller can catch the family; the command line turns a
:class:`SpecError` into exit code 2 and any other of them into exit code 1.
"""

from __future__ import annotations

import re
from collections.abc import Sequence


class CuckooflowError(Exception):
    """Base of every error that cuckooflow raises on purpose."""


class SpecError(CuckooflowError):
    """The job spec, or an option, is wrong. Mend the fields that the message names."""


class ReadOnceLog(SpecError):
    """The input hands each message out once (Pub/Sub), and this needs a log that can be read again. Use a topic
    or a folder, or another command."""


class ReadOnlyInput(SpecError):
    """The input is files, which the live join and the preview only read. Use a topic or a log's folder, or give a
    backfill its files by name."""


# --- logs -----------------------------------------------------------------------------------


class LogError(CuckooflowError):
    """A log cannot do what was asked."""


class LogNotFound(LogError):
    """No log lies at this place. Create it, or correct the path."""


class LogLocked(LogError):
    """Another process writes this partition. One writer at a time: stop the other first."""


class LogDamaged(LogError):
    """A segment holds bytes that are neither a whole message nor a torn tail."""


class OffsetOutOfRange(LogError):
    """The offset was deleted by retention or never existed. Skip it explicitly to go on."""


class LogRecreated(LogError):
    """The log was deleted and made anew: offsets of the old one mean nothing in it. Start the job anew."""


class LogUnavailable(LogError):
    """The broker did not answer within its bound. It may be tried again; look whether the broker is up."""


class SnapshotsApart(LogError):
    """A log of snapshots is ahead of the folder that is sent into it. Name another log, or give the folder back."""


class PartitionsChanged(LogError):
    """The examples log has another number of partitions than it was created with, which is fixed for good."""


class RetentionTooShort(LogError):
    """The log deletes messages before a restart would need them. Raise its retention, or checkpoint sooner."""


class ReplayTooLong(LogError):
    """A resume would write more examples again than the reader recognises. Raise ``training.dedupe_rows``."""


class TooManyFiles(LogError):
    """A manifest would list more files than it may. Start the job anew on a pattern of newer files."""


class MessageTooLarge(LogError):
    """A message is over the log's bound. Split it, or raise ``max_message_bytes``."""


class MessageNotStorable(LogError):
    """A message holds a newline and the log stores one message a line. Use the frames encoding."""


# --- in-band time ---------------------------------------------------------------------------


class ChainOverflow(CuckooflowError):
    """More elements came out of order than a shard may hold back. Raise the bound or find the gap."""


class StateDoesNotFit(CuckooflowError):
    """A resumed join declares a column's type so that values in its state do not fit it. Declare the old type, or a
    wider one, and go on from the same savepoint."""


class ChainBroken(CuckooflowError):
    """An element contradicts what the shard heard before. A job has one source, with fixed partitions."""


# --- embedding store ------------------------------------------------------------------------


class StoreError(CuckooflowError):
    """The embedding store refused a request."""


class UnknownTable(StoreError):
    """The store has no table or dense parameter of this name."""


class BadShape(StoreError):
    """An array does not have the shape or dtype that its table asks for."""


class LogNotOpened(StoreError):
    """A push names a log partition that ``open_log`` has not recorded. Open it first."""


class WrongIncarnation(StoreError):
    """The log, or the store, is not the one it was: it was recreated or restored."""


class MarkMismatch(StoreError):
    """A push does not begin where the store stands. Cut the range at :attr:`marks` and send again.

    Attributes:
        marks: the distinct marks, as ``(offset, row)``, that differ from the push's first position
            and are not past its end, in ascending order.
    """

    def __init__(self, message: str, marks: Sequence[tuple[int, int]]) -> None:
        super().__init__(message)
        self.marks: tuple[tuple[int, int], ...] = tuple(marks)

    def __reduce__(self) -> tuple[type[MarkMismatch], tuple[str, tuple[tuple[int, int], ...]]]:
        return (type(self), (str(self), self.marks))


class StaleRows(StoreError):
    """Since the rows of a push were read, a shard has applied more other pushes than may be missed. Read them anew."""


class NonFiniteGradient(StoreError):
    """A gradient holds NaN or infinity. The push was refused whole."""


class CheckpointDamaged(StoreError):
    """A checkpoint is half-written or its checksum is wrong. An older one may be whole."""


class FullDeltaNeeded(StoreError):
    """This consumer has no base that a delta could stand on. Ask for a full one."""


class CheckpointGivenUp(StoreError):
    """A checkpoint (or an export) held up pushes for longer than its bound. The one before it stands."""


class StoreUnavailable(StoreError):
    """The store's process did not answer within the retry bound."""


# --- snapshots and serving ------------------------------------------------------------------


class SnapshotDamaged(CuckooflowError):
    """A snapshot's blob does not have the size or checksum that its manifest states."""


class SnapshotGap(CuckooflowError):
    """A snapshot's base is not what the replica holds. Load the newest full one."""


class NoSnapshot(CuckooflowError):
    """The scorer has no snapshot yet. Wait for the first one."""


# --- training -------------------------------------------------------------------------------


class FilesGap(CuckooflowError):
    """Files of examples do not go from where the store stands to where the examples log begins. Make the days that
    are missing, or archive the log again."""


class TrainedTwice(CuckooflowError):
    """Files of examples and the examples log hold the same examples, so these would count twice. Train either, or
    hand the join over."""


class DayMadeAnew(CuckooflowError):
    """A day's files were made anew while the store had trained a part of them. Put the old ones back, or rewind."""


class TrainingGap(CuckooflowError):
    """The store stands before what arrives, and what lies between cannot be read again."""


# --- the local cluster ------------------------------------------------------------------------


class ClusterError(CuckooflowError):
    """The local cluster cannot do what was asked."""


class ToolMissing(ClusterError):
    """A program that the cluster needs is not installed. Install it."""


class DownloadFailed(ClusterError):
    """A package could not be had from its registry. Go online, or mend the registry's settings."""


class DownloadDamaged(ClusterError):
    """A download is not the one that was pinned. Remove it from the tool's own cache and try again."""


class PartFailed(ClusterError):
    """A part of the cluster ended, or did not answer within its bound. Its log says why."""


# --- jobs on Flink ----------------------------------------------------------------------------


class FlinkError(CuckooflowError):
    """Flink did not do what was asked."""


class FlinkUnavailable(FlinkError):
    """Nothing answers at Flink's REST address, or not within the bound. Start it, or correct the address."""


class FlinkRefused(FlinkError):
    """Flink answered with an error. The message has its words."""


class FlinkJobNotFound(FlinkError):
    """The JobManager knows no such job. ``job list`` shows those that it knows."""


class WorkerRefused(FlinkError):
    """A pool starts no worker for this job. The message says what would have to differ."""


class NothingToResume(FlinkError):
    """There is no savepoint or retained checkpoint of this job to go on from. Name one."""


# --- the demo -------------------------------------------------------------------------------


class DatasetUnavailable(CuckooflowError):
    """The demo's data set could not be had. Go online, or use ``--dataset simulator``."""


class DemoFailed(CuckooflowError):
    """The demo did not come as far as it should have. The message names the log to read."""


class BadRequest(CuckooflowError):
    """A prediction request is not what the scorer can read. Mend what the message names."""


class ScorerOverloaded(CuckooflowError):
    """The scorer has as many requests under way as it may. Send fewer at once, or add a scorer."""


class ScorerUnavailable(CuckooflowError):
    """The scorer did not answer, or failed. Look at its log; the request may be sent again."""


# --- embedding store: its folder, its process, its bounds --------------------------------------


class StoreLocked(StoreError):
    """Another process, or another store object, uses this data folder. Close that one first."""


class DataFolderUnusable(StoreError):
    """The data folder cannot be made, read or written to. Name another, or give the user the rights."""


class StoreNotEmpty(StoreError):
    """The job has a store already, which a warm start would replace. Name another folder, or say ``--replace``."""


class ConfigDiffers(StoreError):
    """The data folder holds a store of another configuration. Use that one, or another folder."""


class CheckpointNotFound(StoreError):
    """The folder holds no store. Create one with ``open_store``, or correct the path."""


class UnknownVersion(StoreError):
    """An ack names a version that this store never gave. Ack the version that ``delta`` answered."""


class LimitExceeded(StoreError):
    """A request is over one of the store's bounds. Send less at once."""


class InsecureListen(StoreError):
    """Other machines could reach the store's process, but its traffic is not encrypted and authenticated."""


class WrongShard(StoreError):
    """Ids, a dense parameter or a folder of another shard. Name all shards of the store, in their order."""


class StoreOverloaded(StoreError):
    """The store has as many calls or connections as it may. Call again later, or use fewer at once."""


class Unauthenticated(StoreError):
    """The store asks for another bearer token than it received. Give the client the store's token."""


class PendingTooMany(CuckooflowError):
    """More examples lie within ``training.lag`` than a trainer may hold. Shorten the lag, or let it hold more."""


# --- backfill -------------------------------------------------------------------------------


class DayNotWhole(CuckooflowError):
    """A day of files is not there, or not as its manifest says. Make the day (again), then read it."""


class InputFileWrong(CuckooflowError):
    """A file of a bounded input is not there, not what it was when it was listed, or not what the spec says."""


class BackfillBusy(CuckooflowError):
    """Another backfill writes into this folder, or was killed in it. Wait, resume it, or use ``--restart``."""


class HandOverTooEarly(CuckooflowError):
    """The logs do not reach the time of the hand-over in every partition yet. Wait, or hand over earlier."""


class FilesNotShared(CuckooflowError):
    """A worker does not see the folder that the submitter writes to."""


class BackfillUnbalanced(CuckooflowError):
    """Rows in and rows out of a day do not add up. Nothing of that day was replaced; report it as a defect."""


# --- dead letters put back --------------------------------------------------------------------


class ReplayBusy(CuckooflowError):
    """Another process replays dead letters of this job. Wait for it."""


class LedgerDamaged(CuckooflowError):
    """The ledger of replays cannot be read. Without it, what was put back before would be put back again."""


class MendFailed(CuckooflowError):
    """The script that mends dead letters failed. What was appended before stays; mend the script, run it again."""


# --- experiments ----------------------------------------------------------------------------


class NoExamples(CuckooflowError):
    """There are no examples to measure on. Run the join first, or choose another time."""


class TooManyExamples(CuckooflowError):
    """More examples than an experiment may hold in memory. Choose a shorter time, or let it hold more."""


def named_cause(error: BaseException | None) -> CuckooflowError | None:
    """The named error that is this one, or the nearest that it came of; None: there is none."""
    while error is not None:
        if isinstance(error, CuckooflowError):
            return error
        error = error.__cause__ or error.__context__
    return None


def named_in(text: str) -> CuckooflowError | None:
    """The last named error in what a runner tells of a worker's, traces and all; None: there is none."""
    kinds = {
        name: kind
        for name, kind in globals().items()
        if isinstance(kind, type) and issubclass(kind, CuckooflowError)
    }
    # A line such as the last of a traceback, without what Beam adds.
    found = re.findall(rf"\b({'|'.join(kinds)}): (.*?)(?: \[while running .*)?$", text, re.MULTILINE)
    for name, message in reversed(found):
        return kinds[name].__new__(kinds[name], message)  # some want more than a message when they are made
    return None
