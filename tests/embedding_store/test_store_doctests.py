"""The examples in the docstrings run."""

from __future__ import annotations

import doctest
import importlib

import pytest

MODULES = ("address", "config_json", "hashing", "shards", "store")


@pytest.mark.parametrize("module", MODULES)
def test_examples(module):
    result = doctest.testmod(importlib.import_module(f"cuckooflow.embedding_store.{module}"))
    assert result.attempted > 0 and result.failed == 0
