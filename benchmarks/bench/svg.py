"""Inline SVG from plain functions: scales, axes, marks. Colours are classes, so that the page decides light and dark."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

CHARACTER_PX = 6.2  # of the labels' type, about
SERIES_COLOURS = 8  # classes c0 ... c7 of the page


@dataclass(frozen=True)
class Scale:
    """Values from low to high onto pixels from start_px to end_px. log: both are above 0."""

    low: float
    high: float
    start_px: float
    end_px: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (
            (math.log(self.low), math.log(self.high), math.log(max(value, self.low)))
            if self.log
            else (self.low, self.high, value)
        )
        share = (value - low) / (high - low) if high > low else 0.5
        return self.start_px + share * (self.end_px - self.start_px)

    def ticks(self, most: int = 6) -> list[float]:
        """Round values between low and high: 1, 2, 5 and their tenfolds."""
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            found = [m * 10.0**k for k in decades for m in (1, 2, 5) if self.low <= m * 10.0**k <= self.high]
            return found if len(found) >= 2 else [self.low, self.high]
        if self.high <= self.low:
            return [self.low]
        rough = (self.high - self.low) / most
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
        first, last = math.ceil(self.low / step), math.floor(self.high / step + 1e-9)
        return [k * step for k in range(first, last + 1)]


@dataclass(frozen=True)
class Area:
    """Where the marks of a chart go, with its two scales; y grows upwards."""

    width_px: int
    height_px: int
    x: Scale
    y: Scale


def area(
    x: tuple[float, float], y: tuple[float, float], width_px: int = 560, height_px: int = 240, log_x: bool = False
) -> Area:
    """With room for the axes' numbers and names."""
    left, right, top, bottom = 56, 12, 10, 40
    return Area(
        width_px,
        height_px,
        Scale(*x, left, width_px - right, log_x),
        Scale(*y, height_px - bottom, top),
    )


def axes(place: Area, x_name: str, y_name: str) -> str:
    """Grid, numbers and names."""
    x, y = place.x, place.y
    parts = [
        f'<line class="grid" x1="{n(x(t))}" x2="{n(x(t))}" y1="{n(y.end_px)}" y2="{n(y.start_px)}"/>'
        + text(x(t), y.start_px + 15, number(t), "tick", "middle")
        for t in x.ticks()
    ]
    parts += [
        f'<line class="grid" y1="{n(y(t))}" y2="{n(y(t))}" x1="{n(x.start_px)}" x2="{n(x.end_px)}"/>'
        + text(x.start_px - 6, y(t) + 4, number(t), "tick", "end")
        for t in y.ticks(4)
    ]
    middle = (y.start_px + y.end_px) / 2
    parts.append(text((x.start_px + x.end_px) / 2, place.height_px - 6, x_name, "name", "middle"))
    parts.append(
        f'<text class="name" text-anchor="middle" transform="translate(12 {n(middle)}) rotate(-90)">{escape(y_name)}</text>'
    )
    return "".join(parts)


def line(place: Area, points: Sequence[tuple[float, float]], css: str, tip: str = "") -> str:
    """A polyline through the points, in values. css: classes."""
    path = " ".join(f"{n(place.x(a))},{n(place.y(b))}" for a, b in points)
    return f'<polyline class="line {css}" points="{path}">{_tip(tip)}</polyline>'


def rule(place: Area, y: float, label: str, css: str = "limit") -> str:
    """A level line with its name."""
    at = n(place.y(y))
    return f'<line class="{css}" x1="{n(place.x.start_px)}" x2="{n(place.x.end_px)}" y1="{at}" y2="{at}"/>' + text(
        place.x.end_px - 4, place.y(y) - 4, label, "tick", "end"
    )


def dot(x_px: float, y_px: float, radius_px: float, css: str, tip: str) -> str:
    return f'<circle class="{css}" cx="{n(x_px)}" cy="{n(y_px)}" r="{n(radius_px)}">{_tip(tip)}</circle>'


def bar(x_px: float, y_px: float, width_px: float, height_px: float, css: str, tip: str) -> str:
    """Never thinner than can be seen."""
    width_px = max(width_px, 0.75)
    return (
        f'<rect class="{css}" x="{n(x_px)}" y="{n(y_px)}" width="{n(width_px)}" height="{n(height_px)}">'
        f"{_tip(tip)}</rect>"
    )


def text(x_px: float, y_px: float, content: str, css: str = "", anchor: str = "start") -> str:
    return f'<text class="{css}" x="{n(x_px)}" y="{n(y_px)}" text-anchor="{anchor}">{escape(content)}</text>'


def labels(place: Area, wanted: Sequence[tuple[float, float, str]], points: Sequence[tuple[float, float]]) -> str:
    """Names beside some of the points, in pixels, each where points and the names before it leave room."""
    taken = [(x_px - 9, x_px + 9, y_px + 4) for x_px, y_px in points]
    found = ""
    for x_px, y_px, content in wanted:
        wide = CHARACTER_PX * len(content)
        places = [
            (left, y_px + down)
            for down in (4, -10, 18, -22, 30, -34, 42)
            for left in (x_px + 13, x_px - 13 - wide)
            if place.x.start_px < left < place.x.end_px - wide + 4
            and place.y.end_px + 8 < y_px + down < place.y.start_px
        ]
        free = [p for p in places if all(p[0] + wide < a or p[0] > b or abs(p[1] - y) > 11 for a, b, y in taken)]
        left, y = (free or places or [(x_px + 13, y_px)])[0]
        taken.append((left, left + wide, y))
        found += text(left, y, content, "tick over")
    return found


def picture(width_px: int, height_px: int, title: str, body: str) -> str:
    """The whole SVG. title: what a screen reader says."""
    return (
        f'<svg viewBox="0 0 {width_px} {height_px}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{body}</svg>"
    )


def series_css(index: int) -> str:
    """The colour of the index-th run; dashed when the colours begin again."""
    return f"c{index % SERIES_COLOURS}" + (" dashed" if index >= SERIES_COLOURS else "")


def thinned(values: Sequence[float], most: int = 400) -> Iterator[tuple[int, float]]:
    """(place, value): all of a short series; of a long one the least and the most of every stretch, so that no peak is lost."""
    if len(values) <= 2 * most:
        yield from enumerate(values)
        return
    step = math.ceil(len(values) / most)
    for start in range(0, len(values), step):
        stretch = range(start, min(start + step, len(values)))
        yield from (
            (k, values[k]) for k in sorted({min(stretch, key=values.__getitem__), max(stretch, key=values.__getitem__)})
        )


def number(value: float) -> str:
    """As short as it can be: 1500 -> "1500", 0.05 -> "0.05"."""
    return f"{value:.10g}" if abs(value) < 1e6 else f"{value:.0e}"


def n(value_px: float) -> str:
    """A hundredth of a pixel is enough."""
    return f"{value_px:.2f}".rstrip("0").rstrip(".")


def _tip(tip: str) -> str:
    return f"<title>{escape(tip)}</title>" if tip else ""
