"""A user's own model from a file: found, built and trained from its text alone, and faults named."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cuckooflow.errors import SpecError
from cuckooflow.models.base import Targets, distinct
from cuckooflow.models.features import FeatureSpec
from cuckooflow.models.registry import build_model, store_config
from cuckooflow.models.spec import ModelSpec
from cuckooflow.pipelines.spec_file import SpecFaults, load_spec

#: The class that docs/models.md shows: user . item + bias.
_DOCS = Path(__file__).resolve().parents[2] / "docs" / "models.md"
CODE = re.findall(r"^```python\n(.*?)^```$", _DOCS.read_text(), re.M | re.S)[0]
FEATURES = (FeatureSpec(name="user"), FeatureSpec(name="item"))


def test_it_trains_from_its_text() -> None:
    spec = ModelSpec(
        file=Path("two_tower.py"), code=CODE, labels=("like",), dim=3, options={"begin": "zeros"}
    )
    # As a snapshot's manifest has it: the scorer needs no file.
    spec = ModelSpec.model_validate(spec.model_dump(mode="json"))
    assert spec.kind == "file"
    model = build_model(spec, FEATURES)
    config = store_config(model)
    assert [(t.name, t.dim) for t in config.tables] == [("pair", 3)]
    encoded = model.encode(pa.record_batch({"user": ["a", "b"], "item": ["x", "x"]}))
    lookup = distinct(encoded)
    rows = np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32)
    ones = np.ones((2, 1), np.float32)
    bias = {"bias": np.full(1, 0.5, np.float32)}
    result = model.train_step(
        model.prepare(encoded, lookup, {"pair": rows}, bias), Targets(ones, 0 * ones), 2
    )
    user, item = (rows[lookup.inverse[:, place]] for place in (0, 1))
    expected = 1 / (1 + np.exp(-(user * item).sum(1) - 0.5))
    assert result.probabilities[:, 0] == pytest.approx(expected, abs=1e-5)
    assert result.dense_gradients["bias"][0] == pytest.approx((expected - 1).sum() / 2, abs=1e-5)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("def (", r"SyntaxError: .* at line 1"),
        ("\n\nimport no_such_thing_at_all", r"ModuleNotFoundError: .*no_such_thing_at_all.* at line 3"),
        ("x = 1", "one class that extends .*, received none"),
        ("from cuckooflow.models.lr import LogisticRegression", "received none"),
        (CODE + "\n\nclass Other(TwoTower):\n    pass\n", "received TwoTower, Other"),
        (CODE.replace("def forward", "def backward"), "received none; TwoTower lacks forward"),
    ],
)
def test_a_file_without_a_model_is_refused(code: str, said: str) -> None:
    spec = ModelSpec(file=Path("mine.py"), code=code, labels=("like",))
    with pytest.raises(SpecError, match=said):
        build_model(spec, FEATURES)


def test_a_job_spec_reads_the_file_and_names_its_faults(tmp_path: Path) -> None:
    text = (Path(__file__).parent.parent / "pipelines" / "job.yaml").read_text()
    start = text.index("\nmodel:")
    end = text.index("\n", text.index("\n", start + 1) + 1)
    while text[end + 1 : end + 2] in (" ", "#"):
        end = text.index("\n", end + 1)
    job = tmp_path / "job.yaml"
    job.write_text(
        text[:start]
        + "\nmodel: {file: mine.py, labels: [like], dim: 4, options: {begin: zeros}}"
        + text[end:]
    )
    with pytest.raises(SpecFaults, match=r"model.file: received 'mine.py'.*No such file"):
        load_spec(job)
    (tmp_path / "mine.py").write_text("1 / 0")
    with pytest.raises(SpecFaults, match=r"ZeroDivisionError: division by zero at line 1"):
        load_spec(job)
    (tmp_path / "mine.py").write_text(CODE)
    spec = load_spec(job).model
    assert spec.code == CODE
    assert type(build_model(spec, FEATURES)).__name__ == "TwoTower"


def test_options_of_another_kind_are_refused() -> None:
    with pytest.raises(ValueError, match="cross_layers goes with kind dcn or file, received kind deepfm"):
        ModelSpec(labels=("a",), cross_layers=3)
    with pytest.raises(ValueError, match="fm has no hidden layers"):
        ModelSpec(kind="fm", labels=("a",), hidden=(3,))
    with pytest.raises(ValueError, match="give the file, and no kind"):
        ModelSpec(kind="file", labels=("a",))
    with pytest.raises(ValueError, match=r"label_weights: .* received \['b'\]"):
        ModelSpec(labels=("a",), label_weights={"b": 2})
