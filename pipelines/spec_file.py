"""Reads a job spec from YAML and reports every fault at once, each with line, field and what is allowed.

Each section is validated on its own, so that a fault in one does not hide those of another; checks
across sections then run between all sections that came out whole.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, PydanticUndefined

from cuckooflow.errors import SpecError
from cuckooflow.models.duration import format_duration
from cuckooflow.models.own import own_model
from cuckooflow.models.spec import ModelSpec
from cuckooflow.pipelines.job_spec import (
    ColumnsSpec,
    JobSpec,
    JoinSpec,
    LabelSpec,
    NegativeSamplingSpec,
    least_lag,
)
from cuckooflow.pipelines.log_specs import LOG_KINDS, FilesLogSpec, PubSubLogSpec
from cuckooflow.pipelines.messages import message_faults
from cuckooflow.transforms.columns import Column

Location = tuple[str | int, ...]

#: The event time of every row, whichever column it came from.
TIME_COLUMN = "_time"
#: Types of columns that can be summed and compared.
NUMBERS = ("int64", "uint64", "float32", "float64")

_RECEIVED_MAX = 60
#: Under this key a value may be a password.
_SECRETIVE = "client"


@dataclass(frozen=True)
class Fault:
    """One thing wrong with a spec: where, what was received, what is allowed."""

    location: Location
    received: str
    allowed: str

    def text(self, file: str, lines: Mapping[Location, int]) -> str:
        at = self.location
        while at not in lines and at:
            at = at[:-1]
        field = ".".join(str(part) for part in self.location) or "(the whole file)"
        return f"{file}:{lines.get(at, 1)}: {field}: received {self.received}; allowed: {self.allowed}"


class SpecFaults(SpecError):
    """A job spec with faults: ``faults`` holds them all, the message a line for each."""

    def __init__(self, message: str, faults: tuple[Fault, ...]) -> None:
        super().__init__(message)
        self.faults = faults


def load_spec(path: Path) -> JobSpec:
    """The job spec in a YAML file, its ``dir`` made absolute.

    Raises:
        SpecFaults: with every fault of the file.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise SpecFaults(f"{path}: cannot be read: {e}", ()) from e
    return parse_spec(text, path)


def parse_spec(text: str, path: Path) -> JobSpec:
    """As :func:`load_spec`, for text already read; ``path`` names it and is what ``dir`` is relative to."""
    try:
        raw = yaml.safe_load(text)
        tree = yaml.compose(text)
        lines = dict(_lines(tree, ()))
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        raise SpecFaults(f"{path}:{line}: not YAML: {getattr(e, 'problem', e)}", ()) from e
    if not isinstance(raw, dict):
        faults: list[Fault] = [
            Fault((), _shown(raw), "a mapping with the keys " + ", ".join(JobSpec.model_fields))
        ]
        spec = None
    else:
        sections, faults = _validate_sections(raw)
        faults += _repeated_keys(tree, ())
        folder = path.parent / sections.get("dir", Path())
        faults += _cross_faults(sections, folder)
        if sections.get("model") is not None and sections["model"].file is not None:
            sections["model"], own_faults = _with_code(sections["model"], folder)
            faults += own_faults
        spec = None if faults else JobSpec.model_construct(**sections)
    if spec is None:
        noun = "fault" if len(faults) == 1 else "faults"
        body = "\n".join(fault.text(str(path), lines) for fault in faults)
        raise SpecFaults(f"{len(faults)} {noun} in {path}:\n{body}", tuple(faults))
    return spec.model_copy(update={"dir": (path.parent / spec.dir).resolve()})


def _validate_sections(raw: Mapping[str, Any]) -> tuple[dict[str, Any], list[Fault]]:
    sections: dict[str, Any] = {}
    faults = [
        _unknown_key((key,), key, list(JobSpec.model_fields))
        for key in raw
        if key not in JobSpec.model_fields
    ]
    for name, info in JobSpec.model_fields.items():
        if name not in raw:
            if info.is_required():
                faults.append(Fault((name,), "nothing", _allowed_of(info.annotation)))
            else:
                sections[name] = info.get_default(call_default_factory=True)
            continue
        adapter: TypeAdapter[Any] = TypeAdapter(_annotated(info.annotation, info.metadata))
        try:
            sections[name] = adapter.validate_python(raw[name])
        except ValidationError as e:
            faults += [_fault_of(name, error, info.annotation) for error in e.errors()]
    return sections, faults


def _annotated(annotation: Any, metadata: list[Any]) -> Any:
    """The field's type with its bounds, which pydantic keeps apart."""
    return Annotated[(annotation, *metadata)] if metadata else annotation


def _fault_of(section: str, error: ErrorDetails, annotation: Any) -> Fault:
    parts = (part for part in error["loc"] if part != "[key]" and part not in LOG_KINDS)
    location: Location = (section, *parts)
    kind, context = error["type"], error.get("ctx", {})
    received = "a value that is not shown" if _SECRETIVE in location else _shown(error["input"])
    if kind == "extra_forbidden":
        return _unknown_key(location, str(location[-1]), _keys_at(annotation, error["loc"][:-1]))
    if kind == "missing":
        return Fault(location, "nothing", "a value, this field is required")
    if kind == "literal_error":
        return Fault(location, received, str(context["expected"]))
    if kind == "value_error":
        return Fault(location, received, str(context["error"]))
    return Fault(location, received, error["msg"][0].lower() + error["msg"][1:])


def _unknown_key(location: Location, key: str, known: list[str]) -> Fault:
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"{near[0]} (did you mean that?); " if near else ""
    return Fault(
        location, f"the unknown key {key!r}", f"{hint}the keys here are {', '.join(known) or 'not known'}"
    )


def _keys_at(annotation: Any, location: Location) -> list[str]:
    """Keys that the model at a location knows; walks models, dicts and lists of them."""
    for part in location:
        if part in LOG_KINDS:
            annotation = LOG_KINDS[str(part)]
            continue
        model = annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
        if model is not None and part in model.model_fields:
            annotation = model.model_fields[str(part)].annotation
        else:
            arguments = [a for a in get_args(annotation) if a is not type(None)]
            annotation = arguments[-1] if arguments else None
    candidates = [annotation, *get_args(annotation)]
    for candidate in candidates:
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return list(candidate.model_fields)
    return []


def _allowed_of(annotation: Any) -> str:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        needed = [n for n, f in annotation.model_fields.items() if f.get_default() is PydanticUndefined]
        return f"a mapping, with at least {', '.join(needed)}" if needed else "a mapping"
    return "a value, this field is required"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _RECEIVED_MAX else text[: _RECEIVED_MAX - 3] + "..."


def _lines(node: yaml.Node | None, at: Location) -> Iterator[tuple[Location, int]]:
    if node is None:
        return
    yield at, node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*at, key.value)
            yield from _lines(value, here)
            yield here, key.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _lines(item, (*at, index))


def _repeated_keys(node: yaml.Node | None, at: Location) -> Iterator[Fault]:
    """YAML takes the last of keys that are the same, without a word."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            here = (*at, key.value)
            if key.value in seen:
                yield Fault(here, "the key twice", "each key once")
            seen.add(key.value)
            yield from _repeated_keys(value, here)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _repeated_keys(item, (*at, index))


def _with_code(model: ModelSpec, folder: Path) -> tuple[ModelSpec, list[Fault]]:
    """The section with the text of the user's file, and what is wrong with that."""
    assert model.file is not None
    file = folder / model.file
    try:
        code = file.read_text(encoding="utf-8")
        own_model(str(model.file), code)
    except (OSError, UnicodeDecodeError, SpecError) as error:
        return model, [Fault(("model", "file"), repr(str(model.file)), f"a file with a model; {error}")]
    return model.model_copy(update={"code": code}), []


# --- checks across sections -----------------------------------------------------------------


def _cross_faults(sections: Mapping[str, Any], folder: Path) -> list[Fault]:
    faults: list[Fault] = []
    columns: ColumnsSpec | None = sections.get("columns")
    if columns is not None and "messages" in sections:
        for log in ("impressions", "actions"):
            spec = getattr(sections["messages"], log)
            faults += [Fault(*fault) for fault in message_faults(log, spec, getattr(columns, log), folder)]
    faults += _once_faults(sections)
    faults += _files_faults(sections)
    labels: dict[str, LabelSpec] | None = sections.get("labels")
    if columns is not None and "join" in sections:
        faults += _join_faults(sections["join"], columns)
    if columns is not None and "features" in sections:
        for index, feature in enumerate(sections["features"]):
            for column in feature.inputs:
                if column != TIME_COLUMN and column not in columns.impressions:
                    faults.append(
                        Fault(
                            ("features", index),
                            repr(column),
                            _one_of("impression columns", columns.impressions),
                        )
                    )
    faults += _streaming_faults(sections)
    faults += _mirror_faults(sections)
    if "features" in sections:
        names = [feature.name for feature in sections["features"]]
        for index, name in enumerate(names):
            if name in names[:index]:
                faults.append(Fault(("features", index, "name"), repr(name), "each feature's name once"))
    if labels is not None and "model" in sections:
        for index, label in enumerate(sections["model"].labels):
            if label not in labels:
                faults.append(Fault(("model", "labels", index), repr(label), _one_of("labels", labels)))
    for section, key in (("training", "late_share"), ("snapshots", "gate")):
        for label in getattr(sections[section], key) if section in sections and "model" in sections else ():
            if label not in sections["model"].labels:
                known = f"labels of the model: {', '.join(sections['model'].labels)}"
                faults.append(Fault((section, key), repr(label), known))
    if labels is not None:
        emit = sections["join"].emit if "join" in sections else None
        faults += _label_faults(labels, emit, None if columns is None else columns.actions)
    sampling: NegativeSamplingSpec | None = sections.get("negative_sampling")
    if sampling is not None and "model" in sections:
        several = len(sections["model"].labels) > 1
        if sampling.rate < 1 and sampling.correction == "log_odds" and several:
            faults.append(
                Fault(
                    ("negative_sampling", "correction"),
                    "'log_odds' with several labels",
                    "'weight', or a model with one label",
                )
            )
    return faults


def _mirror_faults(sections: Mapping[str, Any]) -> Iterator[Fault]:
    if "serving" not in sections or "snapshots" not in sections or sections["serving"].mirror is None:
        return
    mirror, snapshots = sections["serving"].mirror, sections["snapshots"]
    if snapshots.log is None:
        yield Fault(
            ("serving", "mirror"), repr(str(mirror)), "none without snapshots.log, of which it is a copy"
        )
    elif mirror == snapshots.dir:
        yield Fault(("serving", "mirror"), repr(str(mirror)), "a folder of its own, not snapshots.dir")


def _streaming_faults(sections: Mapping[str, Any]) -> Iterator[Fault]:
    """What streaming features name that is not there, and a lag within which labels could not be known."""
    features = sections.get("features", [])
    streaming = [(index, feature) for index, feature in enumerate(features) if feature.streaming]
    plain = {feature.name: feature for feature in features if feature.kind == "id"}
    columns: ColumnsSpec | None = sections.get("columns")
    labels: dict[str, LabelSpec] | None = sections.get("labels")
    for index, feature in streaming:
        where = ("features", index)
        if columns is not None and feature.column is not None and feature.column not in columns.impressions:
            allowed = _one_of("impression columns", columns.impressions)
            yield Fault((*where, "column"), repr(feature.column), allowed)
        if labels is not None and feature.label is not None and feature.label not in labels:
            yield Fault((*where, "label"), repr(feature.label), _one_of("labels", labels))
        if feature.like is not None and feature.like not in plain:
            yield Fault((*where, "like"), repr(feature.like), _one_of("features of kind id", plain))
    if "training" not in sections or labels is None or "snapshots" not in sections:
        return
    lag, least = sections["training"].lag, least_lag(labels, sections["snapshots"])
    if streaming and lag is not None and lag < least:
        yield Fault(
            ("training", "lag"),
            repr(format_duration(lag)),
            f"at least {format_duration(least)}: the longest window of a label, and snapshots.interval",
        )


def _once_faults(sections: Mapping[str, Any]) -> Iterator[Fault]:
    """What a job cannot do whose inputs are read once."""
    if "logs" not in sections or "join" not in sections:
        return
    logs = sections["logs"]
    once = any(isinstance(log, PubSubLogSpec) for log in (logs.impressions, logs.actions))
    if once and sections["join"].replay_speed is not None:
        speed = repr(sections["join"].replay_speed)
        yield Fault(("join", "replay_speed"), speed, "none where an input is a Pub/Sub subscription")


def _files_faults(sections: Mapping[str, Any]) -> Iterator[Fault]:
    """Messages of another format than what an input's files hold."""
    for log in ("impressions", "actions") if "logs" in sections and "messages" in sections else ():
        of_log = getattr(sections["logs"], log)
        if not isinstance(of_log, FilesLogSpec):
            continue
        files, kind = of_log.files, getattr(sections["messages"], log).format
        allowed = {"json": ("json",), "parquet": ("json", "arrow")}.get(files.format)
        if files.value is None and allowed is not None and kind not in allowed:
            takes = f"{' or '.join(allowed)}, as logs.{log}.files has the format {files.format}"
            yield Fault(("messages", log, "format"), repr(kind), takes)


def _join_faults(join: JoinSpec, columns: ColumnsSpec) -> Iterator[Fault]:
    for index, key in enumerate(join.key):
        for log, declared in (("impressions", columns.impressions), ("actions", columns.actions)):
            if key not in declared:
                yield Fault(("join", "key", index), repr(key), _one_of(f"columns of {log}", declared))
        both = columns.impressions.get(key), columns.actions.get(key)
        if both[0] is not None and both[1] is not None and both[0].type != both[1].type:
            yield Fault(("join", "key", index), f"{both[0].type} and {both[1].type}", "one type in both logs")
    for field, declared in (("impression_time", columns.impressions), ("action_time", columns.actions)):
        name = getattr(join, field)
        if name not in declared:
            yield Fault(("join", field), repr(name), _one_of("columns", declared))
        elif declared[name].type != "time":
            yield Fault(("join", field), f"{name}, of type {declared[name].type}", "a column of type time")
    for field in ("action_type", "action_id"):
        name = getattr(join, field)
        if name is not None and name not in columns.actions:
            yield Fault(("join", field), repr(name), _one_of("columns of actions", columns.actions))
    if join.action_type in columns.actions and columns.actions[join.action_type].type != "string":
        yield Fault(
            ("join", "action_type"), f"a {columns.actions[join.action_type].type} column", "a string column"
        )


def _label_faults(
    labels: Mapping[str, LabelSpec], emit: str | None, columns: Mapping[str, Column] | None
) -> Iterator[Fault]:
    seen: dict[LabelSpec, str] = {}
    for name, label in labels.items():
        if label in seen:
            yield Fault(("labels", name), f"the same as {seen[label]}", "each label once, under one name")
        seen[label] = name
        if label.value != "flag" and emit == "eager":
            allowed = "flag with join.emit eager, which gives an example with its first action"
            yield Fault(("labels", name, "value"), repr(label.value), allowed)
        if (label.column is not None) != (label.value in ("sum", "max")):
            allowed = "a column of actions with sum and max, and with nothing else"
            yield Fault(("labels", name, "column"), f"{label.column!r} with {label.value}", allowed)
        elif label.column is not None and columns is not None:
            numbers = {n: c for n, c in columns.items() if c.type in NUMBERS}
            if label.column not in numbers:
                yield Fault(
                    ("labels", name, "column"), repr(label.column), _one_of("numbers of actions", numbers)
                )


def _one_of(what: str, names: Mapping[str, Any]) -> str:
    return f"{what}: {', '.join(names)}"
