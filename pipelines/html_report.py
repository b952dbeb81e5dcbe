"""Reports as one HTML file with plots, readable without a network."""

from __future__ import annotations

import html
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2430; background: #f5f6f8; margin: 0; }
main { max-width: 1080px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 18px; margin: 36px 0 6px; }
p { margin: 4px 0 10px; max-width: 78ch; } .note { color: #5a6472; font-size: 14px; }
.card { background: #fff; border: 1px solid #e1e5ea; border-radius: 8px; padding: 10px 14px; margin: 10px 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(165px, 1fr)); gap: 10px; margin: 18px 0; }
.tile { background: #fff; border: 1px solid #e1e5ea; border-radius: 8px; padding: 10px 14px; }
.tile b { display: block; font-size: 22px; } .tile span { color: #5a6472; font-size: 13px; }
.two { display: grid; grid-template-columns: 1fr 1fr; gap: 10px; }
@media (max-width: 800px) { .two { grid-template-columns: 1fr; } }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 4px 10px; border-bottom: 1px solid #eceff3; }
th:first-child, td:first-child { text-align: left; } th { color: #5a6472; font-weight: 600; }
.left { text-align: left; } .ok { color: #00704f; font-weight: 600; } .bad { color: #b3261e; font-weight: 600; }
"""

Row = Sequence[str]


def write_page(path: Path, title: str, sections: Sequence[str]) -> None:
    """Write a page of HTML sections. It needs nothing but this one file."""
    page = (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style><script>{get_plotlyjs()}</script></head>"
        f"<body><main>{''.join(sections)}</main></body></html>"
    )
    path.write_text(page, encoding="utf-8")


def plot(title: str) -> go.Figure:
    """An empty plot in the reports' style."""
    return go.Figure(
        layout={
            "title": {"text": title, "font": {"size": 15}, "x": 0, "xanchor": "left", "pad": {"l": 6}},
            "template": "plotly_white",
            "height": 330,
            "margin": {"l": 60, "r": 16, "t": 44, "b": 44},
            "legend": {"orientation": "h", "y": -0.2},
            "hovermode": "closest",
        }
    )


def plot_html(figure: go.Figure) -> str:
    """A plot as a part of a section."""
    return str(figure.to_html(full_html=False, include_plotlyjs=False, config={"displayModeBar": False}))


def table_html(head: Row, rows: Sequence[Row], left: int = 1) -> str:
    """A table; its first ``left`` columns are text."""

    def cells(row: Row, tag: str) -> str:
        return "".join(
            f"<{tag}{' class=left' if at < left else ''}>{html.escape(cell)}</{tag}>"
            for at, cell in enumerate(row)
        )

    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return f"<table><tr>{cells(head, 'th')}</tr>{body}</table>"


def mark_time(figure: go.Figure, at_us: int, text: str) -> None:
    """A dotted line at a moment of an axis of times."""
    at = time_of(at_us)
    figure.add_vline(x=at.timestamp() * 1e3, line={"color": "#999", "dash": "dot", "width": 1})
    figure.add_annotation(
        x=at,
        y=1,
        yref="paper",
        text=text,
        showarrow=False,
        xanchor="left",
        font={"color": "#777", "size": 12},
    )


def time_of(us: int) -> datetime:
    """Microseconds since the epoch as a time, UTC."""
    return datetime.fromtimestamp(us / 1e6, UTC)
