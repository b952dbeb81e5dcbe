"""Named errors across the wire: raised at the client as they were at the store."""

from __future__ import annotations

from typing import Any

from cuckooflow import errors
from cuckooflow.errors import MarkMismatch, SpecError, StoreError


def error_to_head(error: Exception) -> dict[str, Any]:
    """An error as an answer's head. What has no name of its own arrives as :class:`StoreError`."""
    if isinstance(error, MarkMismatch):
        return {"error": "MarkMismatch", "message": str(error), "marks": [list(mark) for mark in error.marks]}
    if isinstance(error, StoreError | SpecError):
        return {"error": type(error).__name__, "message": str(error)}
    return {
        "error": "StoreError",
        "message": f"the store failed unexpectedly ({type(error).__name__}: {error}). See its log.",
    }


def raise_if_error(head: dict[str, Any]) -> None:
    """Raise the error that an answer's head carries, if any."""
    name = head.get("error")
    if name is None:
        return
    if name == "MarkMismatch":
        raise MarkMismatch(head["message"], [(offset, row) for offset, row in head["marks"]])
    kind = getattr(errors, name, StoreError)
    raise (kind if isinstance(kind, type) and issubclass(kind, errors.CuckooflowError) else StoreError)(
        head["message"]
    )
