"""Draws the curves of a run: a panel a metric, with restarts, lost steps and values that are none.

Through matplotlib's objects alone: its pyplot keeps figures in global state, and threads draw here.
"""

import io
import math
from collections.abc import Sequence
from typing import Any

from trainjob.metrics.history import Curve, MetricHistory, Point
from trainjob.metrics.summary import MetricSummary, format_value, summaries

_PANEL_INCHES = (4.8, 3.1)
_MAX_NAME_CHARS = 44
_LOG_RATIO = 500
_FONT = "DejaVu Sans"  # comes with matplotlib
_BLUE, _RED, _GRAY = "#1f6fb4", "#c4383a", "#8a8f98"


def plot(history: MetricHistory, title: str, max_panels: int) -> bytes:
    """Return the curves as a PNG image.

    Args:
        history: The curves; there must be one.
        title: What stands above them, such as the name of the run; may be empty.
        max_panels: Of more metrics than this, the first ones are shown.
    """
    # These cost 0.2 s and 30 MB: only a run with metrics pays for them.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = dict(list(history.curves.items())[:max_panels])
    num_columns = 1 if len(shown) == 1 else 2 if len(shown) <= 4 else 3
    num_rows = math.ceil(len(shown) / num_columns)
    head_inches = 0.5 if title else 0.15
    size = (num_columns * _PANEL_INCHES[0], num_rows * _PANEL_INCHES[1] + head_inches)
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    if title:
        figure.suptitle(
            _readable(title), fontsize=13, fontweight="bold", parse_math=False, family=_FONT
        )
    panels = figure.subplots(num_rows, num_columns, squeeze=False).flatten()
    facts = {metric.name: metric for metric in summaries(history)}
    for panel, (name, curves) in zip(panels, shown.items(), strict=False):
        _draw_metric(panel, name, curves, history)
        unit = "value number" if all(curve.is_counted for curve in curves) else "step"
        panel.set_xlabel(unit + _facts(facts.get(name)), fontsize=8.5, color="#3c4149")
    for panel in panels[len(shown) :]:
        panel.set_axis_off()
    left_out = len(history.curves) - len(shown)
    if left_out:
        note = f"{left_out} more metrics are not drawn; metrics.jsonl and TensorBoard have them"
        figure.supxlabel(note, fontsize=9, color=_GRAY)
    return _png(canvas)


def _png(canvas: Any) -> bytes:
    """Return the drawing in 64 colors: enough for lines, and a third of the bytes."""
    # matplotlib needs and brings Pillow (see above).
    from PIL import Image

    canvas.draw()
    drawing = Image.frombuffer("RGBA", canvas.get_width_height(), canvas.buffer_rgba())
    buffer = io.BytesIO()
    drawing.convert("RGB").quantize(64).save(buffer, format="png", optimize=True)
    return buffer.getvalue()


def _draw_metric(panel: Any, name: str, curves: Sequence[Curve], history: MetricHistory) -> None:
    for curve in curves:
        _draw_points(panel, curve.lost(), color=_GRAY, alpha=0.5, label="lost by a restart")
    kept = [point for curve in curves for point in curve.kept()]
    _draw_points(panel, kept, color=_BLUE, alpha=1.0)
    _choose_scale(panel, kept)
    _mark_missing(panel, kept)
    for row, curve in enumerate(curves[1:]):
        _mark_restart(panel, curve, history.resumed_from.get(curve.attempt), row)
    panel.set_title(
        _readable(name), loc="left", fontsize=11, fontweight="bold", parse_math=False, family=_FONT
    )
    panel.grid(visible=True, color="#e3e6ea", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(labelsize=8, color=_GRAY)
    panel.margins(x=0.03, y=0.12)
    _draw_legend(panel)


def _draw_points(
    panel: Any, points: Sequence[Point], *, color: str, alpha: float, label: str = ""
) -> None:
    """Draw a line through the points; one that is not finite is a gap in it."""
    if not points:
        return
    steps = [point.step for point in points]
    values = [point.value if math.isfinite(point.value) else math.nan for point in points]
    width = 1.0 if len(points) > 200 else 1.6
    marker = "o" if len(points) <= 30 else ""
    panel.plot(
        *(steps, values),
        marker=marker,
        color=color,
        alpha=alpha,
        label=label,
        linewidth=width,
        markersize=3,
    )


def _choose_scale(panel: Any, points: Sequence[Point]) -> None:
    values = [point.value for point in points if math.isfinite(point.value)]
    if values and min(values) > 0 and max(values) / min(values) > _LOG_RATIO:
        panel.set_yscale("log")


def _mark_restart(panel: Any, curve: Curve, resumed_from: int | None, row: int) -> None:
    """Draw a line where an attempt went on, with its number, each in a row of its own."""
    is_known = resumed_from is not None and not curve.is_counted
    start = resumed_from if is_known else next(iter([*curve.kept(), *curve.lost()])).step
    panel.axvline(start, color=_RED, linewidth=1, linestyle=(0, (4, 3)), alpha=0.8)
    panel.annotate(
        f"restart {curve.attempt}",
        xy=(start, 1),
        xycoords=("data", "axes fraction"),
        xytext=(3, -2 - 9 * row),
        textcoords="offset points",
        verticalalignment="top",
        fontsize=7.5,
        color=_RED,
    )


def _mark_missing(panel: Any, points: Sequence[Point]) -> None:
    """Mark the steps with nan or infinite values at the bottom."""
    steps = [point.step for point in points if not math.isfinite(point.value)]
    if steps:
        heights = [0.02] * len(steps)
        at_bottom = panel.get_xaxis_transform()
        panel.plot(steps, heights, "x", color=_RED, ms=5, transform=at_bottom, label="nan or inf")


def _draw_legend(panel: Any) -> None:
    """Explain what is on the panel beside the curve, each thing once."""
    handles, labels = panel.get_legend_handles_labels()
    entries = dict(zip(labels, handles, strict=True))
    if entries:
        panel.legend(entries.values(), entries.keys(), loc="best", fontsize=7.5, framealpha=0.7)


def _facts(metric: MetricSummary | None) -> str:
    if metric is None:
        return ""
    facts = [f"last {format_value(metric.last)}"]
    if metric.lowest is not None and metric.highest is not None:
        facts.append(f"min {format_value(metric.lowest)} at {metric.lowest_step:,}")
        facts.append(f"max {format_value(metric.highest)} at {metric.highest_step:,}")
    return "\n" + "    ".join(facts)


def _readable(text: str) -> str:
    """Return a name as one line that fits above a panel, in characters that the font has."""
    # Only a run with metrics pays for this (see above).
    from matplotlib.font_manager import findfont, get_font

    font = get_font(findfont(_FONT))
    line = text if len(text) <= _MAX_NAME_CHARS else f"{text[: _MAX_NAME_CHARS - 1]}…"
    return "".join(c if font.get_char_index(ord(c)) else "□" for c in line)
