"""Shows a running demo: a progress bar with figures on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from cuckooflow.pipelines.demo.progress import Observed

#: Between two plain lines, where there is no terminal.
LINE_EVERY_S = 5.0
#: Versions whose freshness is shown as "now".
_VERSIONS_SHOWN = 5


def figures_line(observed: Observed) -> list[tuple[str, str]]:
    """What is worth seeing of a running job: (name, value) in the order of the data's way."""
    joined = observed.joined

    def count(name: str) -> str:
        return f"{joined.get('join.' + name, 0):,}"

    line = [
        ("impressions", count("impressions")),
        ("actions", count("actions")),
        ("examples", count("examples")),
        ("used", count("used")),
        ("late", count("late")),
        ("unmatched", count("unmatched")),
        ("dead", f"{sum(observed.dead.values()):,}"),
    ]
    recent = observed.recent()
    if recent.positives.sum() and recent.negatives.sum():
        line += [("AUC", f"{recent.auc():.3f}"), ("log loss", f"{recent.log_loss():.3f}")]
    if observed.served:
        line.append(("serves", f"snapshot {observed.served[-1].sequence}"))
        freshness = observed.freshness_s(last=_VERSIONS_SHOWN)
        if len(freshness):
            line.append(("freshness", f"{sorted(freshness)[len(freshness) // 2]:.1f} s"))
    return line


class Watch:
    """The screen while the replay runs. Use as a context manager; call :meth:`show` often.

    Args:
        console: where to; a terminal gets a bar that moves, anything else a line now and then.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("replay"),
            BarColumn(bar_width=40),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            console=console,
        )
        self._task = self._progress.add_task("replay", total=1.0)
        self._live: Live | None = None
        self._screen = Table.grid()
        self._printed_s: float | None = None

    def __enter__(self) -> Watch:
        if self._console.is_terminal:
            self._live = Live(
                console=self._console, refresh_per_second=4, get_renderable=lambda: self._screen
            )
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del kind, error, trace
        if self._live is not None:
            self._live.stop()

    def show(self, fraction: float, observed: Observed) -> None:
        """Bring the screen up to date."""
        line = figures_line(observed)
        if self._live is not None:
            self._progress.update(self._task, completed=fraction)
            self._screen = _screen(self._progress, line)
            return
        now_s = time.monotonic()
        if self._printed_s is None or now_s - self._printed_s >= LINE_EVERY_S:
            self._printed_s = now_s
            body = "  ".join(f"{name} {value}" for name, value in line)
            self._console.print(f"replay {fraction:4.0%}  {body}", highlight=False)

    def say(self, text: str) -> None:
        """A line that stays, above the bar."""
        self._console.print(text, highlight=False)


def _screen(progress: Progress, line: list[tuple[str, str]]) -> Table:
    figures = Table.grid(padding=(0, 3))
    half = (len(line) + 1) // 2
    for part in (line[:half], line[half:]):
        figures.add_row(*(f"[dim]{name}[/dim] {value}" for name, value in part))
    screen = Table.grid()
    screen.add_row(progress.get_renderable())
    screen.add_row(figures)
    return screen
