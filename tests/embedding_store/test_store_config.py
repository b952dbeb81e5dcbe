"""A store's configuration: as JSON and back, and every fault named."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuckooflow.embedding_store.api import DenseConfig, Optimizer, StoreConfig, TableConfig
from cuckooflow.embedding_store.config_json import (
    check_config,
    config_from_file,
    config_from_json,
    config_to_json,
)
from cuckooflow.embedding_store.store import EmbeddedStore
from cuckooflow.errors import SpecError

rates = st.floats(0, 1, allow_nan=False)
optimizers = st.builds(
    Optimizer,
    st.sampled_from(["sgd", "adagrad", "adam", "ftrl"]),
    st.floats(0.001, 1),
    rates,
    st.floats(0, 0.999),
    st.floats(0, 0.999),
    beta=st.floats(0.001, 1),
    l1=rates,
    l2=rates,
)
tables = st.builds(
    TableConfig,
    st.text(min_size=1),
    dim=st.integers(1, 1024),
    optimizer=optimizers,
    init_stddev=rates,
    seed=st.integers(0, 2**64 - 1),
    admission=st.integers(1, 255),
    slot_admission=st.dictionaries(st.integers(0, 4095), st.integers(1, 255), max_size=4),
    admission_mode=st.sampled_from(["exact", "probabilistic"]),
    clip_norm=rates,
    l2=rates,
)
dense = st.builds(
    DenseConfig,
    st.text(min_size=1),
    shape=st.lists(st.integers(1, 9), max_size=3).map(tuple),
    optimizer=optimizers,
    init=st.sampled_from(["zeros", "ones", "glorot_uniform"]),
    seed=st.integers(0, 9),
)


@given(
    st.builds(
        StoreConfig,
        st.lists(tables, max_size=3, unique_by=lambda t: t.name).map(tuple),
        st.lists(dense, max_size=3, unique_by=lambda d: d.name).map(tuple),
        buckets=st.integers(1, 65_536),
    )
)
def test_there_and_back(config):
    assert config_from_json(config_to_json(config)) == config


def test_what_is_left_out_takes_its_default():
    text = json.dumps({"tables": [{"name": "t", "dim": 8}], "dense": [{"name": "w", "shape": [2]}]})
    assert config_from_json(text) == StoreConfig((TableConfig("t", dim=8),), (DenseConfig("w", (2,)),))


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "null", '{"tables": 3}', '{"tables": [{"nme": "t", "dim": 8}]}']
)
def test_other_json_is_refused(text):
    with pytest.raises(SpecError, match="expected a store configuration"):
        config_from_json(text)


def test_all_faults_are_named_at_once():
    wrong = StoreConfig(
        (
            TableConfig("a", dim=0, admission=0),
            TableConfig("a", dim=1025, init_stddev=float("nan"), slot_admission={4096: 1}),
            TableConfig("b", dim=8, optimizer=Optimizer("sgd", learning_rate=float("inf"))),
            TableConfig("", dim=8, optimizer=Optimizer("adam", beta1=1.0), seed=-1, filter_bytes=0),
            TableConfig(
                "c",
                dim=8,
                optimizer=Optimizer("ftrl", l1=-1.0),
                clip_norm=-1.0,
                l2=float("inf"),
                admission_mode="sketch",
            ),
            TableConfig("d", dim=8, optimizer=Optimizer("ftrl", 0.0, initial_accumulator=0.0, beta=0.0)),
        ),
        (
            DenseConfig("w", (0,), Optimizer("rowwise_adagrad")),
            DenseConfig("v", (3,), Optimizer("ftlr"), init="ones_"),  # type: ignore[arg-type]
        ),
        buckets=0,
    )
    with pytest.raises(SpecError) as caught:
        check_config(wrong)
    message = str(caught.value)
    for fault in (
        "buckets: expected 1 to 65536, received 0",
        "tables: expected distinct names, received 'a'",
        "tables: expected a name",
        "tables.a.dim: expected 1 to 1024, received 0",
        "tables.a.dim: expected 1 to 1024, received 1025",
        "tables.a.admission",
        "tables.a.init_stddev",
        "tables.a.slot_admission",
        "tables.b.optimizer.learning_rate",
        "tables..optimizer.beta1",
        "tables..seed",
        "tables..filter_bytes",
        "tables.c.optimizer.l1",
        "tables.c.clip_norm",
        "tables.c.l2",
        "tables.c.admission_mode",
        "tables.d.optimizer.learning_rate",
        "tables.d.optimizer.beta",
        "dense.w.shape",
        "dense.w.optimizer.kind",
        "dense.v.optimizer.kind",
        "dense.v.init",
    ):
        assert fault in message
    with pytest.raises(SpecError):
        EmbeddedStore(wrong)


@pytest.mark.parametrize(
    ("where", "options"),
    [
        ("tables.t.dim", {"dim": 4.0}),
        ("tables.t.dim", {"dim": "4"}),
        ("tables.t.dim", {"dim": None}),
        ("tables.t.admission", {"admission": True}),
        ("tables.t.init_stddev", {"init_stddev": "small"}),
        ("tables.t.slot_admission", {"slot_admission": {1: 2.5}}),
        ("tables.t.slot_ttl_us", {"slot_ttl_us": {"1": 2}}),
        ("tables.t.half_lives_us", {"kind": "counter", "half_lives_us": (1.5,)}),
        ("tables.t.optimizer.learning_rate", {"optimizer": Optimizer("sgd", "fast")}),  # type: ignore[arg-type]
        ("tables.7.name", {"name": 7}),
    ],
)
def test_fields_of_another_type_are_named(where, options):
    with pytest.raises(SpecError, match=rf"{where}: expected .*, received"):
        EmbeddedStore(StoreConfig((TableConfig(**{"name": "t", "dim": 4, **options}),)))


def test_dense_and_store_fields_of_another_type_are_named():
    with pytest.raises(SpecError, match=r"dense\.w\.shape: expected whole numbers, received \(2\.5,\)"):
        EmbeddedStore(StoreConfig((), (DenseConfig("w", (2.5,)),)))  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="buckets: expected a whole number, received '8'"):
        EmbeddedStore(StoreConfig((), buckets="8"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"{", "store configuration as JSON"), (b"\xff\xfe", "received no text"), (None, "No such file")],
)
def test_a_file_that_holds_none_is_named(tmp_path, content, says):
    file = tmp_path / "config.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SpecError, match=says) as caught:
        config_from_file(file)
    assert str(file) in str(caught.value)
