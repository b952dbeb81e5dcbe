"""Where files of events lie that a live join reads, and how they are read; an input, never an output."""

from __future__ import annotations

import posixpath
import zlib
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from cuckooflow.errors import ReadOnlyInput
from cuckooflow.models.duration import DurationUs

if TYPE_CHECKING:
    from cuckooflow.transforms.files_log import FilesLog

FileFormat = Literal["parquet", "json", "tfrecord"]


class FilesAddress(BaseModel):
    """Files of one log's events, those that come later included.

    A file is read once, whole and unchanged; who writes one gives it its name when it is whole, or a name that begins
    with a dot or an underscore until then: such files, and files in such folders, are left alone.

    Attributes:
        path: a folder, all files below it; or a pattern, ``*`` for any name and ``**`` for any path. Relative to
            the job's ``dir``, or an address such as ``gs://bucket/...``.
        format: ``parquet``; ``json``, one object a line; or ``tfrecord``, each record a message (``tf_example``
            for most). The last two are compressed where the name says so: .gz, .bz2, .zst.
        value: of ``parquet``: the column that holds messages, default none: a column a field.
        partitions: how many the files are dealt out to, by their names, for good; default 1. One file is in one
            partition, and each partition is read in one order: more let several be read at once.
        order: in which order files are read that are seen together, as in a backlog: by ``name`` (default), or by
            when they were ``modified``. It ought to be that of their events.
        manifest: folder of the list of files that were seen, in the order in which they are read, for one job; where a
            job goes on elsewhere, on storage that both reach. Default ``files/`` in the job's ``dir``.
        list_every: how often new files are looked for, default 1 s; and so seldom that it takes no more than a
            twentieth of the time. Costs a listing, which object stores bill.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field(min_length=1)
    format: FileFormat
    value: str | None = Field(default=None, min_length=1)
    partitions: int = Field(default=1, ge=1, le=1024)
    order: Literal["name", "modified"] = "name"
    manifest: str | None = Field(default=None, min_length=1)
    list_every: DurationUs = Field(default=1_000_000, ge=10_000)

    @field_validator("path")
    @classmethod
    def _stars_alone(cls, path: str) -> str:
        if any(c in path for c in "?[]"):
            raise ValueError("a path with * and ** alone for what varies, without ?, [ and ]")
        return path

    @model_validator(mode="after")
    def _value_of_parquet(self) -> FilesAddress:
        if self.value is not None and self.format != "parquet":
            raise ValueError(f"value only with the format parquet, received {self.format}")
        return self

    @property
    def name(self) -> str:
        """The log's name."""
        return self.path

    @property
    def pattern(self) -> str:
        """What files are matched with."""
        return self.path if "*" in self.path else posixpath.join(self.path, "**")

    @property
    def base(self) -> str:
        """The folder that all of them lie in; ends in a slash."""
        return self.pattern[: self.pattern.index("*")].rpartition("/")[0] + "/"

    def resolved_in(self, folder: str) -> FilesAddress:
        """The same files, whatever the working folder, with the manifest's place settled.

        Args:
            folder: what paths are relative to.
        """
        slug = "".join(c if c.isalnum() else "-" for c in self.path).strip("-")[-40:]
        known = f"files/{slug}-{zlib.crc32(self.path.encode()):08x}"
        return self.model_copy(
            update={
                "path": _inside(folder, self.path),
                "manifest": _inside(folder, self.manifest or known),
            }
        )

    def open_reader(self) -> FilesLog:
        """Open it for reading.

        Raises:
            LogNotFound: the folder is not there.
            LogUnavailable: the file system does not answer.
            LogDamaged: the manifest is none.
        """
        from cuckooflow.transforms.files_log import FilesLog

        return FilesLog(self)

    def read_only(self, what: str) -> ReadOnlyInput:
        """The error of who would write them, or read them by other means."""
        return ReadOnlyInput(f"expected a topic or a log's folder for {what}, received {self}")

    def __str__(self) -> str:
        return f"files {self.path}"


def _inside(folder: str, path: str) -> str:
    return path if "://" in path else posixpath.normpath(posixpath.join(folder, path))
