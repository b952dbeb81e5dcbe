"""What an experiment found: a table on the terminal, one JSON value, one HTML file with plots."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cuckooflow.errors import NoExamples
from cuckooflow.pipelines.experiments.one_pass import Refusals
from cuckooflow.pipelines.experiments.scored import Scored, Variant
from cuckooflow.pipelines.html_report import plot, plot_html, table_html, time_of, write_page

#: Colours that stay apart for colour-blind readers too (Okabe and Ito, 2008).
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A8A8A")


@dataclass(frozen=True)
class Outcome:
    """Variants of one thing, measured on the same rows.

    Attributes:
        experiment: its name as a command.
        title, about: a line and a few sentences for the reader.
        variant: what the variants differ in.
        reference: the name of the one that the others' loss is counted from.
        variants: in the order of the table; all have the same labels and facts.
        scored: the rows that were scored.
        refused: rows that could not be trained, in all passes.
        facts: what holds for all variants.

    Raises:
        NoExamples: no row was scored.
    """

    experiment: str
    title: str
    about: str
    variant: str
    reference: str
    variants: Sequence[Variant]
    scored: Scored
    refused: Refusals
    facts: Mapping[str, Any]

    def __post_init__(self) -> None:
        if not any(variant.figures(label).rows for variant in self.variants for label in self._labels):
            why = f"{self.refused.rows:,} could not be trained: {self.refused.reason}"
            raise NoExamples(
                f"expected rows to score with labels {', '.join(self._labels)}, received none; "
                f"{why if self.refused.rows else 'choose a time whose labels are known'}"
            )

    def to_json(self, job: str) -> dict[str, Any]:
        """Plain values; what cannot be told, such as the AUC of rows of one kind, is None."""
        which = self.scored
        return {
            "experiment": self.experiment,
            "job": job,
            **self.facts,
            "warm_up_rows": which.first,
            "scored_rows": which.last - which.first,
            "scored_from": time_of(which.from_us).isoformat(),
            "scored_until": time_of(which.until_us).isoformat(),
            "refused_rows": self.refused.rows,
            "results": [
                {
                    self.variant: variant.name,
                    **variant.facts,
                    "labels": {label: self._figures(variant, label) for label in self._labels},
                }
                for variant in self.variants
            ],
        }

    def print(self, console: Console) -> None:
        """Show the table."""
        console.print(f"{self.title}. {self._rows_line()}")
        table = Table(*self._head(), box=None, pad_edge=False)
        for column in table.columns[1:]:
            column.justify = "right"
        for line in self._lines():
            table.add_row(*line)
        console.print(table)
        console.print(self.about)

    def write(self, folder: Path, job: str) -> Path:
        """Write the table as JSON and the report, both named after the experiment; the report's path. The folder is there."""
        (folder / f"{self.experiment}.json").write_text(json.dumps(self.to_json(job), indent=1) + "\n")
        report = folder / f"{self.experiment}.html"
        curves = "".join(f"<div class='card'>{self._over_time(label)}</div>" for label in self._labels)
        head = (
            f"<h1>{html.escape(self.title)}</h1><p>{html.escape(job)}: {html.escape(self._rows_line())}</p>"
            f"<p class='note'>{html.escape(self.about)}</p>"
        )
        sections = [
            head,
            f"<div class='card'>{self._by_variant()}</div>",
            f"<div class='card'>{table_html(self._head(), self._lines())}</div>",
            f"<h2>Over event time</h2>{curves}",
        ]
        write_page(report, f"cuckooflow {self.experiment}", sections)
        return report

    # --- parts ----------------------------------------------------------------------------------

    @property
    def _labels(self) -> list[str]:
        return self.variants[0].labels

    def _rows_line(self) -> str:
        which = self.scored
        line = (
            f"{which.last - which.first:,} rows scored, {time_of(which.from_us):%Y-%m-%d %H:%M} to "
            f"{time_of(which.until_us):%Y-%m-%d %H:%M} UTC, after {which.first:,} rows of warm-up."
        )
        if self.refused.rows:
            line += (
                f" {self.refused.rows:,} rows could not be trained and are not scored: {self.refused.reason}."
            )
        return line

    def _figures(self, variant: Variant, label: str) -> dict[str, Any]:
        of = variant.figures(label)
        reference = next(each for each in self.variants if each.name == self.reference)
        return {
            "auc": _told(of.auc),
            "auc_lost": _told(reference.figures(label).auc - of.auc),
            "log_loss": _told(of.log_loss),
            "calibration": _told(of.calibration),
            "rows": of.rows,
        }

    def _head(self) -> list[str]:
        facts = [name.replace("_", " ") for name in self._shown_facts()]
        figures = ["AUC", "AUC lost", "log loss", "predicted / observed"]
        return [
            self.variant,
            *(f"{label} {name}" for label in self._labels for name in figures),
            *facts,
        ]

    def _shown_facts(self) -> list[str]:
        """Facts in seconds are told by the variant's name."""
        return [name for name in self.variants[0].facts if not name.endswith("_s")]

    def _lines(self) -> list[list[str]]:
        lines = []
        for variant in self.variants:
            line = [variant.name]
            for label in self._labels:
                found = self._figures(variant, label)
                line += [
                    _shown(found["auc"], ".4f"),
                    _shown(found["auc_lost"], "+z.4f"),
                    _shown(found["log_loss"], ".4f"),
                    _shown(found["calibration"], ".3f"),
                ]
            facts = [variant.facts[name] for name in self._shown_facts()]
            lines.append(line + [_shown(fact, "," if isinstance(fact, int) else ".3f") for fact in facts])
        return lines

    def _by_variant(self) -> str:
        figure = plot(f"AUC by {self.variant}")
        for n, label in enumerate(self._labels):
            figure.add_scatter(
                x=[variant.name for variant in self.variants],
                y=[_told(variant.figures(label).auc) for variant in self.variants],
                name=label,
                mode="lines+markers",
                line={"color": _COLOURS[n % len(_COLOURS)], "width": 2},
            )
        figure.update_xaxes(title=self.variant, type="category").update_yaxes(title="AUC")
        return plot_html(figure)

    def _over_time(self, label: str) -> str:
        figure = plot(f"AUC of {label} over event time")
        for n, variant in enumerate(self.variants):
            points = variant.over_time(label)
            figure.add_scatter(
                x=[time_of(start) for start, _ in points],
                y=[_told(figures.auc) for _, figures in points],
                name=variant.name,
                line={"color": _COLOURS[n % len(_COLOURS)], "width": 2},
            )
        figure.update_yaxes(title="AUC")
        return plot_html(figure)


def _told(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _shown(value: float | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)
