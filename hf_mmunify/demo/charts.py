"""Line charts as inline SVG: no plotting library, no script, and the colours of the page that holds them."""

import math
from collections.abc import Mapping, Sequence
from html import escape


WIDTH, HEIGHT = 420, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 14, 40  # margins that hold the axes


def round_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers that cover `low` to `high`: about `about` of them, in steps of 1, 2 or 5 times a power of ten."""
    if high <= low:
        high = low + 1.0
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(place * step, 10) for place in range(first, last + 1)]


def _label(number: float) -> str:
    return f"{number:g}"


def line_chart(
    title: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    x_label: str,
    y_label: str,
    *,
    x_ticks: Sequence[float] | None = None,
    y_range: tuple[float, float] | None = None,
    dashed: Sequence[str] = (),
    dots: bool = False,
) -> str:
    """An SVG figure of lines, with a legend below where there are several.

    The classes `s0`, `s1`, ... colour the lines; the page's style sheet says how.

    Args:
        title (`str`): Stands above the chart, and names it for screen readers.
        series (`Mapping[str, Sequence[tuple[float, float]]]`): Points `(x, y)` of each line, by its name.
        x_label (`str`), y_label (`str`): What the axes measure.
        x_ticks (`Sequence[float]`, *optional*): Where the x axis has numbers; by default round ones.
        y_range (`tuple[float, float]`, *optional*): Ends of the y axis; by default around the data.
        dashed (`Sequence[str]`): Names of the lines to draw dashed.
        dots (`bool`, defaults to `False`): Whether to mark each point and show its value on hovering.

    Raises:
        ValueError: when there is no point to draw.
    """
    points = [point for line in series.values() for point in line]
    if not points:
        raise ValueError(f"The chart {title!r} has no point to draw.")
    xs = list(x_ticks or round_ticks(min(x for x, _ in points), max(x for x, _ in points)))
    ys = round_ticks(*(y_range or (min(y for _, y in points), max(y for _, y in points))))
    x_low, x_high = min(xs[0], *(x for x, _ in points)), max(xs[-1], *(x for x, _ in points))

    def across(x: float) -> float:
        return round(_LEFT + (x - x_low) / ((x_high - x_low) or 1.0) * (WIDTH - _LEFT - _RIGHT), 1)

    def down(y: float) -> float:
        return round(HEIGHT - _BOTTOM - (y - ys[0]) / (ys[-1] - ys[0]) * (HEIGHT - _TOP - _BOTTOM), 1)

    bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
    parts = [
        f'<line class="grid" x1="{_LEFT}" y1="{down(y)}" x2="{right}" y2="{down(y)}"/>'
        f'<text class="tick" x="{_LEFT - 7}" y="{down(y) + 4}" text-anchor="end">{_label(y)}</text>'
        for y in ys
    ]
    parts += [
        f'<text class="tick" x="{across(x)}" y="{bottom + 17}" text-anchor="middle">{_label(x)}</text>' for x in xs
    ]
    parts.append(f'<line class="axis" x1="{_LEFT}" y1="{bottom}" x2="{right}" y2="{bottom}"/>')
    parts.append(
        f'<text class="tick" x="{(_LEFT + right) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>'
        f'<text class="tick" transform="translate(12 {(_TOP + bottom) / 2}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_label)}</text>"
    )
    for number, (name, line) in enumerate(series.items()):
        style = f"line s{number}{' dashed' if name in dashed else ''}"
        path = " ".join(f"{across(x)},{down(y)}" for x, y in line)
        parts.append(f'<polyline class="{style}" points="{path}"><title>{escape(name)}</title></polyline>')
        for x, y in line if dots else ():
            parts.append(
                f'<circle class="dot s{number}" cx="{across(x)}" cy="{down(y)}" r="4">'
                f"<title>{escape(name)}: {y:.3g} at {_label(x)}</title></circle>"
            )
    legend = "".join(
        f'<li><svg class="key" viewBox="0 0 22 8" aria-hidden="true"><line class="line s{number}'
        f'{" dashed" if name in dashed else ""}" x1="0" y1="4" x2="22" y2="4"/></svg>{escape(name)}</li>'
        for number, name in enumerate(series)
        if len(series) > 1
    )
    name = escape(title)
    return (
        f'<figure class="chart"><figcaption>{name}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{name}">{"".join(parts)}</svg>'
        f'<ul class="legend">{legend}</ul></figure>'
    )
