"""Prism as the jobs run on it."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.coders import VarIntCoder
from apache_beam.transforms.periodicsequence import PeriodicImpulse
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec
from apache_beam.transforms.window import GlobalWindows

from cuckooflow.errors import SpecError
from cuckooflow.runners import prism as runner

IMPULSES, ELEMENTS = 3, 8
SLOW_S = 0.4  # Prism looks every 100 ms whether a bundle goes on


class _Numbered(beam.DoFn):
    """Writes the key's next number for each element into a file, slowly."""

    def __init__(self, out: Path) -> None:
        self._out = out

    def process(
        self,
        _: tuple[str, int],
        number: Any = beam.DoFn.StateParam(ReadModifyWriteStateSpec("number", VarIntCoder())),  # noqa: B008
    ) -> Iterator[None]:
        following = (number.read() or 0) + 1
        number.write(following)
        time.sleep(SLOW_S)
        with self._out.open("a") as file:
            file.write(f"{following}\n")
        yield


@pytest.mark.prism
@pytest.mark.usefixtures("prism")
def test_state_of_a_slow_bundle_is_whole(tmp_path: Path) -> None:
    out = tmp_path / "numbers"
    preset = runner.preset([])
    now_s = time.time()
    with beam.Pipeline(runner=preset.make_runner(), options=preset.options) as pipeline:
        (
            pipeline
            | PeriodicImpulse(now_s, now_s + IMPULSES - 0.5, 1)
            | beam.WindowInto(GlobalWindows())
            | beam.FlatMap(lambda _: [("key", i) for i in range(ELEMENTS)]).with_output_types(tuple[str, int])
            | beam.ParDo(_Numbered(out))
        )
    found = [int(line) for line in out.read_text().split()]
    assert len(found) % ELEMENTS == 0
    assert len(found) > ELEMENTS  # several bundles, or one that would be split
    assert found == list(range(1, len(found) + 1))


def test_missing_prism_is_told_with_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "find_prism", lambda: None)
    with pytest.raises(SpecError, match=re.escape(runner.INSTALL)):
        runner.preset([])
