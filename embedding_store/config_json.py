"""A store's configuration as JSON, and what a sound one is."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_type_hints

from cuckooflow.embedding_store.api import SLOT_BITS, DenseConfig, Optimizer, StoreConfig, TableConfig
from cuckooflow.embedding_store.kinds import TIME_US_MAX
from cuckooflow.errors import SpecError

_KINDS = {int: "a whole number", float: "a number", str: "a text"}
DIM_MAX = 1024
BUCKETS_MAX = 65_536
ADMISSION_MAX = 255
DENSE_VALUES_MAX = 1 << 28
#: The least that float32 arithmetic divides by.
DIVISOR_MIN = 1e-12
ADMISSION_MODES = get_args(get_type_hints(TableConfig)["admission_mode"])
OPTIMIZERS = get_args(get_type_hints(Optimizer)["kind"])
TTL_US_MAX = 1 << 55  # a thousand years
MEMORY_LIMIT_BYTES_MIN = 1 << 20
#: A row counts its updates up to 65,535, at which the bias correction of a larger beta has not come to its end.
ROW_BETA_MAX = 0.9999


def config_to_json(config: StoreConfig) -> str:
    """Canonical: equal configurations give equal text."""
    return json.dumps(dataclasses.asdict(config), sort_keys=True, separators=(",", ":"))


def config_from_json(text: str) -> StoreConfig:
    """The configuration that :func:`config_to_json` wrote.

    Raises:
        SpecError: not JSON, a field is missing, unknown or out of range.

    >>> from cuckooflow.embedding_store.api import StoreConfig, TableConfig
    >>> config = StoreConfig((TableConfig("user", dim=8),))
    >>> config_from_json(config_to_json(config)) == config
    True
    """
    try:
        body = json.loads(text)
        config = StoreConfig(
            tables=tuple(_table(table) for table in body.pop("tables")),
            dense=tuple(_dense(dense) for dense in body.pop("dense", ())),
            **body,
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise SpecError(
            "expected a store configuration as JSON with tables, dense and buckets; "
            f"received something else ({error}). Write it with config_to_json."
        ) from error
    check_config(config)
    return config


def config_from_file(file: Path) -> StoreConfig:
    """The configuration in a file.

    Raises:
        SpecError: the file cannot be read, or as :func:`config_from_json`; it names the file.
    """
    try:
        return config_from_json(file.read_text())
    except OSError as error:
        raise SpecError(
            f"expected a store configuration in {file}, which cannot be read ({error.strerror})."
        ) from error
    except UnicodeDecodeError as error:
        raise SpecError(f"expected a store configuration in {file}, received no text ({error}).") from error
    except SpecError as error:
        raise SpecError(f"{file}: {error}") from error


def check_config(config: StoreConfig) -> None:
    """Name everything that is wrong with a configuration, at once.

    Raises:
        SpecError: one line a fault.
    """
    faults = _type_faults(config)
    for table in config.tables:
        faults += (f"tables.{table.name}.{fault}" for fault in _type_faults(table, table.optimizer))
    for dense in config.dense:
        faults += (f"dense.{dense.name}.{fault}" for fault in _type_faults(dense, dense.optimizer))
    if not faults:
        faults = _range_faults(config)
    if faults:
        raise SpecError("the store's configuration is wrong; mend:\n  " + "\n  ".join(faults))


def _range_faults(config: StoreConfig) -> list[str]:
    faults: list[str] = []
    if not 1 <= config.delta_backlog_max < 1 << 63:
        faults.append(f"delta_backlog_max: expected 1 to 2^63-1, received {config.delta_backlog_max}")
    if not 1 <= config.buckets <= BUCKETS_MAX:
        faults.append(f"buckets: expected 1 to {BUCKETS_MAX}, received {config.buckets}")
    for kind, names in (
        ("tables", [table.name for table in config.tables]),
        ("dense", [dense.name for dense in config.dense]),
    ):
        for name in sorted({name for name in names if names.count(name) > 1}):
            faults.append(f"{kind}: expected distinct names, received {name!r} more than once")
        if "" in names:
            faults.append(f"{kind}: expected a name, received an empty one")
    for table in config.tables:
        faults += (f"tables.{table.name}.{fault}" for fault in _table_faults(table))
    for dense in config.dense:
        faults += (f"dense.{dense.name}.{fault}" for fault in _dense_faults(dense))
    return faults


def _type_faults(options: Any, optimizer: Any = None) -> list[str]:
    """Fields that hold something else than they are declared to; ranges can be asked of the others only."""
    faults = []
    for name, hint in get_type_hints(type(options)).items():
        value = getattr(options, name)
        if hint in (int, float, str):
            kinds = (int, float) if hint is float else hint
            if not isinstance(value, kinds) or isinstance(value, bool):
                faults.append(f"{name}: expected {_KINDS[hint]}, received {value!r}")
        elif hint == tuple[int, ...] or hint == Mapping[int, int]:
            numbers = [*value, *value.values()] if isinstance(value, Mapping) else value
            if not isinstance(value, Mapping | tuple) or not all(type(number) is int for number in numbers):
                faults.append(f"{name}: expected whole numbers, received {value!r}")
    if optimizer is not None:
        faults += (f"optimizer.{fault}" for fault in _type_faults(optimizer))
    return faults


def _table_faults(table: TableConfig) -> list[str]:
    faults = _optimizer_faults(table.optimizer) + _kind_faults(table)
    if not 1 <= table.dim <= DIM_MAX:
        faults.append(f"dim: expected 1 to {DIM_MAX}, received {table.dim}")
    if not (math.isfinite(table.init_stddev) and table.init_stddev >= 0):
        faults.append(f"init_stddev: expected a finite number from 0, received {table.init_stddev}")
    if not 0 <= table.seed < 1 << 64:
        faults.append(f"seed: expected 0 to 2^64-1, received {table.seed}")
    if not 1 <= table.admission <= ADMISSION_MAX:
        faults.append(f"admission: expected 1 to {ADMISSION_MAX}, received {table.admission}")
    if table.admission_mode not in ADMISSION_MODES:
        faults.append(
            f"admission_mode: expected one of {', '.join(ADMISSION_MODES)}, received {table.admission_mode!r}"
        )
    if not 1 << 10 <= table.filter_bytes <= 1 << 36:
        faults.append(f"filter_bytes: expected 1 KiB to 64 GiB, received {table.filter_bytes}")
    for name in ("clip_norm", "l2"):
        value = getattr(table, name)
        if not (math.isfinite(value) and value >= 0):
            faults.append(f"{name}: expected a finite number from 0, received {value}")
    for slot, admission in table.slot_admission.items():
        if not (0 <= slot < 1 << SLOT_BITS and 1 <= admission <= ADMISSION_MAX):
            faults.append(
                f"slot_admission: expected slots 0 to {(1 << SLOT_BITS) - 1} with an admission of "
                f"1 to {ADMISSION_MAX}, received {slot}: {admission}"
            )
    if not 0 <= table.ttl_us <= TTL_US_MAX:
        faults.append(f"ttl_us: expected 0 to 2^55, received {table.ttl_us}")
    for slot, ttl_us in table.slot_ttl_us.items():
        if not (0 <= slot < 1 << SLOT_BITS and 0 <= ttl_us <= TTL_US_MAX):
            faults.append(
                f"slot_ttl_us: expected slots 0 to {(1 << SLOT_BITS) - 1} with a ttl of 0 to 2^55, "
                f"received {slot}: {ttl_us}"
            )
    if table.memory_policy not in ("refuse_new_ids", "evict_least_recent"):
        faults.append(
            f"memory_policy: expected refuse_new_ids or evict_least_recent, received {table.memory_policy!r}"
        )
    least = MEMORY_LIMIT_BYTES_MIN + filter_bytes(table)
    if table.memory_limit_bytes != 0 and not least <= table.memory_limit_bytes < 1 << 63:
        faults.append(
            f"memory_limit_bytes: expected 0 for none, or {least} (1 MiB and the filter) to 2^63-1, "
            f"received {table.memory_limit_bytes}"
        )
    optimizer = table.optimizer
    if optimizer.kind == "adam" and max(optimizer.beta1, optimizer.beta2) > ROW_BETA_MAX:
        faults.append(
            f"optimizer: expected betas to {ROW_BETA_MAX} for the rows of a table, received "
            f"{optimizer.beta1} and {optimizer.beta2}"
        )
    return faults


def _kind_faults(table: TableConfig) -> list[str]:
    if table.kind not in ("embedding", "counter", "recent"):
        return [f"kind: expected embedding, counter or recent, received {table.kind!r}"]
    faults = []
    given = len(table.half_lives_us)
    if given not in ((1, table.dim) if table.kind == "counter" else (0,)):
        expected = f"1 or {table.dim} (dim) of them" if table.kind == "counter" else "none but for a counter"
        faults.append(f"half_lives_us: expected {expected}, received {given}")
    for us in table.half_lives_us:
        if not 0 <= us <= TIME_US_MAX:
            faults.append(f"half_lives_us: expected 0 (never decays) to 2^61 microseconds, received {us}")
    if table.kind != "embedding":
        plain = TableConfig(table.name, table.dim)
        for name in ("optimizer", "init_stddev", "seed", "admission", "slot_admission"):
            if getattr(table, name) != getattr(plain, name):
                faults.append(f"{name}: expected none for kind {table.kind}, which has no use for it")
    return faults


def evicts(table: TableConfig) -> bool:
    """Whether rows of the table may go away."""
    expires = max(table.ttl_us, *table.slot_ttl_us.values(), 0) > 0
    return expires or (table.memory_limit_bytes > 0 and table.memory_policy == "evict_least_recent")


def filter_bytes(table: TableConfig) -> int:
    """Memory of the table's admission filter: none where every slot admits at once."""
    return table.filter_bytes if max(table.admission, *table.slot_admission.values(), 1) > 1 else 0


def _dense_faults(dense: DenseConfig) -> list[str]:
    faults = _optimizer_faults(dense.optimizer)
    if dense.optimizer.kind == "rowwise_adagrad":
        faults.append(
            "optimizer.kind: rowwise_adagrad is for tables, a dense parameter has no rows. Use adagrad"
        )
    if any(length < 1 for length in dense.shape) or math.prod(dense.shape) > DENSE_VALUES_MAX:
        faults.append(f"shape: expected lengths from 1, at most 2^28 values, received {dense.shape}")
    if dense.init not in ("zeros", "ones", "glorot_uniform"):
        faults.append(f"init: expected zeros, ones or glorot_uniform, received {dense.init!r}")
    return faults


def _optimizer_faults(optimizer: Optimizer) -> list[str]:
    faults = []
    if optimizer.kind not in OPTIMIZERS:
        faults.append(f"optimizer.kind: expected one of {', '.join(OPTIMIZERS)}, received {optimizer.kind!r}")
    for name in ("learning_rate", "initial_accumulator", "epsilon", "beta", "l1", "l2"):
        value = getattr(optimizer, name)
        if not (math.isfinite(value) and value >= 0):
            faults.append(f"optimizer.{name}: expected a finite number from 0, received {value}")
    for name in ("beta1", "beta2"):
        value = getattr(optimizer, name)
        if not 0 <= value < 1:
            faults.append(f"optimizer.{name}: expected 0 to below 1, received {value}")
    if optimizer.kind == "ftrl":
        # Both are divided by.
        if optimizer.learning_rate < DIVISOR_MIN:
            faults.append(
                f"optimizer.learning_rate: expected {DIVISOR_MIN} or more for ftrl, "
                f"received {optimizer.learning_rate}"
            )
        if max(optimizer.beta, optimizer.l2, optimizer.initial_accumulator) < DIVISOR_MIN:
            faults.append(
                "optimizer.beta: expected beta, l2 or initial_accumulator to be "
                f"{DIVISOR_MIN} or more for ftrl, received less for all three"
            )
    return faults


def _table(body: dict[str, Any]) -> TableConfig:
    slots = {int(slot): admission for slot, admission in body.pop("slot_admission", {}).items()}
    ttls = {int(slot): ttl_us for slot, ttl_us in body.pop("slot_ttl_us", {}).items()}
    optimizer = Optimizer(**body.pop("optimizer", {}))
    half_lives = tuple(int(us) for us in body.pop("half_lives_us", ()))
    return TableConfig(
        **body,
        optimizer=optimizer,
        slot_admission=slots,
        slot_ttl_us=ttls,
        half_lives_us=half_lives,
    )


def _dense(body: dict[str, Any]) -> DenseConfig:
    shape = tuple(body.pop("shape"))
    defaults = DenseConfig("", ()).optimizer
    optimizer = Optimizer(**body.pop("optimizer", dataclasses.asdict(defaults)))
    return DenseConfig(**body, shape=shape, optimizer=optimizer)
