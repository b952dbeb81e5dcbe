"""Gradients that some rows make NaN: their batches are refused whole and told, all others count once, seen id by id."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import yaml

from cuckooflow.embedding_store.client import connect
from cuckooflow.pipelines.options import store_addresses
from cuckooflow.pipelines.spec_file import load_spec
from tests.pipelines.commands import process
from tests.pipelines.counted_job import BOUND_S, CountedJob, Impressions, Key, set_section
from tests.pipelines.store_shards import Shards, Wait

pytestmark = [pytest.mark.slow, pytest.mark.fault, pytest.mark.deep, pytest.mark.timeout(600)]

#: A price that is missing is 0 there, and its logarithm infinite.
MODEL = """
from cuckooflow.models.base import tensorflow
from cuckooflow.models.lr import LogisticRegression


class Priced(LogisticRegression):
    def forward(self, inputs, dense):
        return super().forward(inputs, dense) * tensorflow().math.log(inputs.numbers[:, :1])
"""
WITHOUT_PRICE = {("r5", 0), ("r6", 2), ("r77", 1)}  # request, and which of its items


def priced_job(films: Any) -> None:
    """Give the job a model of its own, which reads a price."""
    body = yaml.safe_load(films.spec.read_text())
    body["columns"]["impressions"]["price"] = {"type": "float64", "required": False}
    body["features"].append({"name": "price", "kind": "number"})
    body["model"] = {"file": "priced.py", "labels": ["like"]}
    (films.spec.parent / "priced.py").write_text(MODEL)
    films.spec.write_text(yaml.safe_dump(body))
    films.job = load_spec(films.spec)


def price(impressions: Impressions) -> None:
    for n, row in enumerate(impressions):
        if (row["request_id"], n % 4) not in WITHOUT_PRICE:
            row["price"] = 2.5 + n


def test_batches_that_are_not_finite_are_told_and_the_rest_is_trained(
    films: Any, cli: Callable[..., Any], wait_for: Wait
) -> None:
    set_section(films, "store", "{checkpoint_interval: 1h, buckets: 8, shards: 2}")
    priced_job(films)
    job, shards = CountedJob(films, cli, wait_for), Shards(films, wait_for)

    def refused() -> set[Key]:
        """Of which examples dead letters tell, each once, and why."""
        log = films.job.logs.train_dead_letters.path
        letters = films.rows(log) if films.log_has_rows(log) else []
        assert {letter["reason"] for letter in letters} <= {"gradient_not_finite"}
        rows = [json.loads(letter["value"]) for letter in letters]
        found = {(row["request_id"], row["item_id"]) for row in rows}
        assert len(found) == len(letters)
        return found

    def measured() -> int:
        return sum(record["rows"] for record in films.rows(films.job.logs.train_metrics.path))

    with contextlib.ExitStack() as stack:
        stack.callback(shards.end)
        shards.start(*shards.all)
        with process("run", "train", films.spec):
            job.more(price)
            job.check(but=refused)
            examples, left_out = job.examples(), refused()
            bad = {key for key, row in examples.items() if row["price"] is None}
            assert len(bad) == len(WITHOUT_PRICE) and bad <= left_out
            assert len(left_out) <= len(bad) * films.job.training.batch_size
            wait_for(lambda: measured() == len(examples) - len(left_out), "figures of the others", BOUND_S)
        store: Any = connect(store_addresses(films.job))
        stack.callback(store.close)
        held = store.delta("test", full=True)
        parts = [*(table.weights for table in held.tables.values()), *held.dense.values()]
        assert all(np.isfinite(part).all() for part in parts)
