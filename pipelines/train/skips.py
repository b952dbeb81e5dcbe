"""Ranges of a job's examples log that its trainer leaves out, kept in the job's folder as ``skipped.json``.

They are for good: a store that is restored to before them leaves them out again. What they name is of one
incarnation of the log; another one has other rows at these offsets.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from cuckooflow.embedding_store.durable import write_durably
from cuckooflow.errors import SpecError
from cuckooflow.pipelines.job_spec import JobSpec
from cuckooflow.transforms.examples_reader import Skip

_FILE = "skipped.json"
_RANGE = re.compile(r"(\d+):(\d+)-(\d+)")


def parse_skip(text: str) -> tuple[int, Skip]:
    """Partition and range of ``PARTITION:FIRST-LAST``, offsets, both included.

    Raises:
        SpecError: it is not of this form, or ends before it begins.
    """
    match = _RANGE.fullmatch(text)
    if match is None or int(match[2]) > int(match[3]):
        raise SpecError(f"expected PARTITION:FIRST-LAST, such as 0:1200-1350, received {text!r}")
    return int(match[1]), (int(match[2]), int(match[3]))


def read_skips(job: JobSpec, incarnation: str) -> dict[int, tuple[Skip, ...]]:
    """Partition -> its ranges.

    Args:
        incarnation: of the examples log.

    Raises:
        SpecError: the file is of another incarnation, or damaged.
    """
    file = job.path(Path(_FILE))
    try:
        body = json.loads(file.read_text())
        recorded, ranges = body["incarnation"], body["ranges"]
        found = {
            int(partition): tuple((first, last) for first, last in of) for partition, of in ranges.items()
        }
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SpecError(
            f"{file}: expected ranges to skip, received something else ({error}); mend or remove it"
        ) from None
    if recorded != incarnation:
        raise SpecError(
            f"{file}: expected ranges of the examples log of incarnation {incarnation}, found them of {recorded}: the log "
            "was recreated, so they name other rows; remove the file"
        )
    return found


def add_skips(job: JobSpec, incarnation: str, more: Sequence[tuple[int, Skip]]) -> None:
    """Add ranges to those that are there.

    Raises:
        SpecError: as of :func:`read_skips`.
    """
    found = {partition: list(ranges) for partition, ranges in read_skips(job, incarnation).items()}
    for partition, skip in more:
        ranges = found.setdefault(partition, [])
        if skip not in ranges:
            ranges.append(skip)
    body = {
        "incarnation": incarnation,
        "ranges": {str(partition): ranges for partition, ranges in found.items()},
    }
    write_durably(job.path(Path(_FILE)), json.dumps(body, indent=1).encode())
