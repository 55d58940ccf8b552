"""The one table a run ends with: medians, ratios run by run, and targets."""

from __future__ import annotations

from statistics import median

from figures import Figure, Row, Sample, Target
from servers import Contender

Samples = dict[str, dict[str, list[Sample | None]]]
"""By the figure's name and the server's, one a run; None where there is nothing to tell."""


def number(value: float) -> str:
    """Three digits or so, and no more than the measurement bears."""
    if value == int(value) or abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def values(samples: list[Sample | None], key: str) -> list[float]:
    """What the row's key was in each run that has it."""
    return [sample.values[key] for sample in samples if sample and key in sample.values]


def verdict(target: Target | None, value: float) -> str:
    """The target and whether it was met; '' without one."""
    return f" [{target} {'ok' if target.met(value) else 'MISSED'}]" if target else ""


def value_cell(row: Row, samples: list[Sample | None], target: Target | None) -> str:
    """Median, or the sum of a total."""
    found = values(samples, row.key)
    if not found:
        return "-"
    value = sum(found) if row.total else median(found)
    return number(value) + verdict(target, value)


def ratio_cell(
    row: Row,
    ours: list[Sample | None],
    theirs: list[Sample | None],
    target: Target | None,
) -> str:
    """Median of the runs' own ratios, the least and the greatest, and the target.

    Each run has its own ratio, for what disturbs a run disturbs both servers in it.
    """
    pairs = [(values([a], row.key), values([b], row.key)) for a, b in zip(ours, theirs, strict=False)]
    ratios = [a[0] / b[0] for a, b in pairs if a and b and b[0] > 0]
    if not ratios or not row.compared:
        return "-"
    value = median(ratios)
    return f"{value:.2f} ({min(ratios):.2f}..{max(ratios):.2f}){verdict(target, value)}"


def figure_lines(
    figure: Figure,
    contenders: list[Contender],
    taken: dict[str, list[Sample | None]],
) -> list[list[str]]:
    """A line of cells for each row of the figure."""
    others = [contender for contender in contenders if not contender.ours]
    ours = next((taken.get(c.name, []) for c in contenders if c.ours), [])
    lines = []
    for index, row in enumerate(figure.rows):
        line = ["" if index else figure.name, row.unit, value_cell(row, ours, row.own)]
        line += [value_cell(row, taken.get(c.name, []), None) for c in others]
        for c in others:
            target = row.yardstick if c.role == "yardstick" else row.peer
            line.append(ratio_cell(row, ours, taken.get(c.name, []), target))
        lines.append(line)
    return lines


def render(
    figures: list[Figure],
    contenders: list[Contender],
    samples: Samples,
    left_out: dict[str, str],
) -> str:
    """The table as text: ours first, then the others, then ours against each of them.

    `left_out` has the reason for each figure that was not measured.
    """
    others = [contender.name for contender in contenders if not contender.ours]
    head = ["figure", "unit", "ours", *others, *(f"ours / {name}" for name in others)]
    lines = [head]
    for figure in figures:
        if figure.name in samples:
            lines += figure_lines(figure, contenders, samples[figure.name])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    text += [f"{name}  left out: {reason}" for name, reason in left_out.items()]
    return "\n".join(line.rstrip() for line in text)
