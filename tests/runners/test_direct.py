"""The in-process runner at its end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import apache_beam as beam
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import TimerSpec, on_timer
from apache_beam.transforms.window import GlobalWindow

from cuckooflow.runners.direct import preset

_FIRED: list[str] = []


class _LastWord(beam.DoFn):
    """Gives something out when its input has ended, as a join does whose balance was not told."""

    END = TimerSpec("first_end", TimeDomain.WATERMARK)

    def process(self, _: tuple[int, str], end: Any = beam.DoFn.TimerParam(END)) -> None:
        end.set(GlobalWindow().max_timestamp())

    @on_timer(END)
    def on_end(self) -> Iterator[tuple[int, str]]:
        _FIRED.append("end")
        yield 1, "last"


class _Rechecks(beam.DoFn):
    """Looks again a second after it was given something, as sampling does."""

    RECHECK = TimerSpec("second_recheck", TimeDomain.REAL_TIME)

    def process(self, element: tuple[int, str], recheck: Any = beam.DoFn.TimerParam(RECHECK)) -> None:
        _FIRED.append(element[1])
        recheck.set(0)

    @on_timer(RECHECK)
    def on_recheck(self) -> None:
        _FIRED.append("recheck")


def test_a_timer_set_at_the_end_of_the_input_fires() -> None:
    _FIRED.clear()
    chosen = preset(())
    with beam.Pipeline(runner=chosen.make_runner(), options=chosen.options) as pipeline:
        words = pipeline | beam.Create([(1, "a"), (1, "b")]).with_output_types(tuple[int, str])
        words | beam.ParDo(_LastWord()).with_output_types(tuple[int, str]) | beam.ParDo(_Rechecks())
    assert _FIRED == ["end", "last", "recheck"]
