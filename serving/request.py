"""The predict request of TensorFlow Serving's REST interface, and the answer in the same format.

A request has ``instances``, a list of rows, or ``inputs``, an object of columns; see
https://www.tensorflow.org/tfx/serving/api_rest#predict_api. cuckooflow adds three keys at the top level:
``log_impressions`` (write what was served to the impressions log), ``request_id`` and ``time`` (of the
impressions; default: a new one, and now).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from cuckooflow.errors import BadRequest
from cuckooflow.serving.columns import decode_column

_KEYS = ("instances", "inputs", "signature_name", "log_impressions", "request_id", "time")
#: Rows times different columns: bounds what rows with ever other names can become in memory.
_CELLS_MAX = 4_000_000


@dataclass(frozen=True)
class PredictRequest:
    """What was asked.

    Attributes:
        columns: input column -> values, as many as there are rows; null where a row has none.
        num_rows: how many rows.
        columnar: asked as ``inputs``, so the answer is ``outputs``.
        log_impressions: write the rows to the impressions log.
        request_id: names the request in the impressions log; None: the scorer makes one.
        time: event time of the impressions, as the impressions log writes it; None: now.
    """

    columns: Mapping[str, Sequence[object]]
    num_rows: int
    columnar: bool = False
    log_impressions: bool = False
    request_id: object = None
    time: object = None


def parse_request(body: bytes, input_columns: Sequence[str], rows_max: int) -> PredictRequest:
    """A request's body.

    Args:
        body: JSON, UTF-8.
        input_columns: the columns that the model reads; where there is just one, values may come
            without its name, as in TensorFlow Serving.
        rows_max: more rows are refused.

    Raises:
        BadRequest: names what is wrong and what is allowed.
    """
    top = _object(body)
    unknown = sorted(top.keys() - set(_KEYS))
    if unknown:
        raise BadRequest(
            f"expected the keys {', '.join(_KEYS)}, received also {', '.join(map(repr, unknown))}"
        )
    if ("instances" in top) == ("inputs" in top):
        raise BadRequest("expected either 'instances' (rows) or 'inputs' (columns), received both or neither")
    if top.get("signature_name", "serving_default") not in ("serving_default", ""):
        raise BadRequest(f"expected the signature serving_default, received {top['signature_name']!r}")
    if not isinstance(top.get("log_impressions", False), bool):
        raise BadRequest(f"log_impressions: expected true or false, received {top['log_impressions']!r}")
    request_id = top.get("request_id")
    if isinstance(request_id, str) and not 0 < len(request_id) <= 256:
        raise BadRequest("request_id: expected a string of 1 to 256 characters, or an integer")
    columnar = "inputs" in top
    read = _from_inputs if columnar else _from_instances
    columns, num_rows = read(top["inputs" if columnar else "instances"], input_columns, rows_max)
    return PredictRequest(
        columns=columns,
        num_rows=num_rows,
        columnar=columnar,
        log_impressions=top.get("log_impressions", False),
        request_id=request_id,
        time=top.get("time"),
    )


def request_batch(
    request: PredictRequest,
    input_columns: Sequence[str],
    types: Mapping[str, str],
    event_columns: Sequence[str],
    times_us: Sequence[int],
) -> pa.RecordBatch:
    """The rows as the model's encoder takes them.

    Args:
        request: what was asked.
        input_columns: the columns that the model reads; those that a request lacks are unknown values.
        types: column -> type, as in the manifest; empty: inferred from the values.
        event_columns: allowed in rows besides (request id, time): they say which impression a row is.
        times_us: the event time of each row, becomes ``_time``.

    Raises:
        BadRequest: a column is not declared, or a value is not of its type.
    """
    declared = {*types, *input_columns, *event_columns}
    misspelt = sorted(request.columns.keys() - declared) if types else []
    if misspelt:
        raise BadRequest(
            f"unknown columns {', '.join(map(repr, misspelt))}; known are {', '.join(sorted(declared))}"
        )
    arrays = {
        name: decode_column(name, types.get(name), values)
        for name, values in request.columns.items()
        if name in input_columns or (name in types and name not in event_columns)
    }
    arrays["_time"] = pa.array(times_us, pa.int64())
    return pa.RecordBatch.from_pydict(arrays)


def response_body(
    predictions: Mapping[str, npt.NDArray[np.float64]], columnar: bool, extra: Mapping[str, object]
) -> bytes:
    """The answer: numbers for a model of one label, named values for one of several.

    Args:
        predictions: label -> (n,) probabilities.
        columnar: the request came as ``inputs``.
        extra: further keys at the top level.
    """
    if not all(np.isfinite(scores).all() for scores in predictions.values()):
        raise ValueError("expected finite predictions")
    values = {label: scores.tolist() for label, scores in predictions.items()}
    answer: object
    if len(values) == 1:
        answer = next(iter(values.values()))
    elif columnar:
        answer = values
    else:
        answer = [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
    body = {"outputs" if columnar else "predictions": answer, **extra}
    return orjson.dumps(body)


def _object(body: bytes) -> dict[str, Any]:
    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not a JSON value")

    try:
        try:
            top = orjson.loads(body)
        except orjson.JSONDecodeError:  # the slow one takes a little more, and says more of what is wrong
            top = json.loads(body, parse_constant=refuse)
    except (ValueError, RecursionError) as error:  # JSON and Unicode errors are ValueErrors
        raise BadRequest(f"expected a JSON object, received {body[:60]!r}: {error}") from error
    if not isinstance(top, dict):
        raise BadRequest(f"expected a JSON object, received {body[:60]!r}")
    return top


def _from_instances(
    instances: object, input_columns: Sequence[str], rows_max: int
) -> tuple[dict[str, list[object]], int]:
    if not isinstance(instances, list) or not instances:
        raise BadRequest("instances: expected a list of at least one row")
    _check_rows("instances", len(instances), rows_max)
    if not isinstance(instances[0], dict):
        return {_only_column("instances", input_columns): instances}, len(instances)
    columns: dict[str, list[object]] = {}
    for row, instance in enumerate(instances):
        if not isinstance(instance, dict):
            raise BadRequest(f"instances: expected objects of column names and values, row {row} is none")
        for name, value in instance.items():
            columns.setdefault(name, [None] * len(instances))[row] = value
        _check_cells("instances", len(columns), len(instances))
    return columns, len(instances)


def _from_inputs(
    inputs: object, input_columns: Sequence[str], rows_max: int
) -> tuple[dict[str, list[object]], int]:
    if isinstance(inputs, list):
        inputs = {_only_column("inputs", input_columns): inputs}
    if not isinstance(inputs, dict) or not inputs or not all(isinstance(v, list) for v in inputs.values()):
        raise BadRequest("inputs: expected an object of column names and lists of values")
    lengths = {name: len(values) for name, values in inputs.items()}
    if len(set(lengths.values())) > 1:
        raise BadRequest(f"inputs: expected lists of one length, received {lengths}"[:400])
    rows = next(iter(lengths.values()))
    if not rows:
        raise BadRequest("inputs: expected at least one row")
    _check_rows("inputs", rows, rows_max)
    _check_cells("inputs", len(inputs), rows)
    return inputs, rows


def _check_rows(key: str, rows: int, rows_max: int) -> None:
    if rows > rows_max:
        raise BadRequest(f"{key}: expected at most {rows_max} rows, received {rows}; send several requests")


def _check_cells(key: str, columns: int, rows: int) -> None:
    if columns * rows > _CELLS_MAX:
        raise BadRequest(
            f"{key}: expected at most {_CELLS_MAX} values, received {columns} columns of {rows} rows; send "
            "several requests"
        )


def _only_column(key: str, input_columns: Sequence[str]) -> str:
    if len(input_columns) != 1:
        raise BadRequest(
            f"{key}: values without names are for a model of one column; this one reads "
            f"{', '.join(input_columns)}"
        )
    return input_columns[0]
