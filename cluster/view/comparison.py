"""A comparison for people: its tables on a terminal and in Markdown, and its picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table
from torch import Tensor

from aalnet.sampling import grid
from cluster.data.pictures import png
from cluster.runs.comparison import Comparison, Estimate, Model
from cluster.runs.figures import HIGHER_IS_BETTER, floor_of
from cluster.view.progress import number

Rows = list[list[str]]


def figure_rows(found: Comparison, strong: tuple[str, str]) -> tuple[list[str], Rows]:
    """Heads and rows: a figure each, mean and standard error of each model, the best marked."""
    heads = ["figure", *(model.name for model in found.models), "the condition"]
    rows = []
    for figure in found.figures:
        best = found.best(figure)
        cells = []
        for model in found.models:
            text = _cell(model.estimate(figure))
            cells.append(f"{strong[0]}{text}{strong[1]}" if model is best else text)
        floor = floor_of(found.measured, figure)
        rows.append([_directed(figure), *cells, "" if floor is None else number(floor)])
    return heads, [*rows, *_cost_rows(found)]


def difference_rows(found: Comparison) -> tuple[list[str], Rows]:
    """Heads and rows: how each model differs from the first one, `*` outside two errors."""
    first, *others = found.models
    heads = ["difference", *(f"{model.name} - {first.name}" for model in others)]
    rows = []
    for figure in found.figures:
        cells = []
        for model in others:
            difference = model.difference(first, figure)
            mark = " *" if difference is not None and difference.clear else ""
            cells.append(_cell(difference, signed=True) + mark)
        rows.append([_directed(figure), *cells])
    return heads, rows


def tables(found: Comparison) -> list[Table]:
    """For a terminal."""
    parts = [figure_rows(found, ("[bold]", "[/bold]"))]
    if len(found.models) > 1:
        parts.append(difference_rows(found))
    made = []
    for title, (heads, rows) in zip((found.name, None), parts, strict=False):
        table = Table(title=title)
        for head in heads:
            first = head == heads[0]
            table.add_column(head, justify="left" if first else "right", no_wrap=first)
        for row in rows:
            table.add_row(*row)
        made.append(table)
    return made


def markdown(found: Comparison) -> str:
    """Both tables and what one must know of them, to be pasted into a document."""
    parts = [figure_rows(found, ("**", "**"))]
    if len(found.models) > 1:
        parts.append(difference_rows(found))
    blocks = [f"## {found.name}", "\n".join(f"- {note}" for note in notes(found))]
    for heads, rows in parts:
        rule = ["---", *["---:"] * (len(heads) - 1)]
        blocks.append("\n".join(f"| {' | '.join(row)} |" for row in (heads, rule, *rows)))
    return "\n\n".join(blocks) + "\n"


def notes(found: Comparison) -> list[str]:
    """How it was measured, and what went wrong."""
    share = (
        "Each model trained on the same number of images."
        if found.seconds is None
        else f"Each model trained for {found.seconds:g} s: on as many images as its steps, timed "
        "in turn before, allow."
    )
    errors = (
        f"Mean ± standard error over {len(found.seeds)} seeds; differences are paired by seed."
        if found.errors_over == "seeds"
        else "One seed: ± is the standard error over images, which says nothing of other seeds; "
        "that of a difference is of two separate sets of images."
    )
    measured = found.measured
    lines = [share, errors + " `*`: outside two standard errors."]
    if measured:
        lines.append(f"{measured['images']:,} held-out pairs, {measured['k']} samples of each.")
    if len(found.temperatures) > 1:
        tried = ", ".join(f"{one:g}" for one in found.temperatures)
        lines.append(
            f"Temperature of {tried}: even pairs take the one with the best energy score on the "
            f"odd ones ({found.choice_samples} samples), odd pairs that of the even ones."
        )
    tuned = [f"{model.name} by `{model.file}`" for model in found.models if model.file]
    if tuned:
        lines.append(f"Settings of their own: {', '.join(tuned)}.")
    return [*lines, *found.complaints]


def picture(rows: Mapping[str, Sequence[Sequence[Tensor]]]) -> bytes:
    """Condition, target and every model's samples, a condition a row.

    rows: by model, each of condition, target and samples [C, H, W].
    """
    merged: list[list[Tensor]] = []
    heads = ["condition", "target"]
    for name, of_model in rows.items():
        merged = merged or [list(row[:2]) for row in of_model]
        for before, row in zip(merged, of_model, strict=True):
            before.extend(row[2:])
        heads += [name, *[""] * (len(of_model[0]) - 3)]
    return png(grid(merged, heads))


def _cost_rows(found: Comparison) -> Rows:
    """What each model had, and what became of its seeds."""
    rows = [["images", *(f"{model.images:,}" for model in found.models), ""]]
    if found.seconds is not None:
        planned = (model.planned_seconds for model in found.models)
        rows.append(["seconds planned", *("?" if s is None else number(s) for s in planned), ""])
    rows.append(["seconds trained", *map(_seconds, found.models), ""])
    if len(found.temperatures) > 1:
        rows.append(["temperature", *map(_temperatures, found.models), ""])
    if found.complaints:
        rows.append(["silent", *(str(sum(o.silent for o in m.outcomes)) for m in found.models), ""])
        failed = (sum(o.failure is not None for o in m.outcomes) for m in found.models)
        rows.append(["failed", *map(str, failed), ""])
    return rows


def _seconds(model: Model) -> str:
    values = [outcome.seconds for outcome in model.outcomes if outcome.figures]
    return _cell(Estimate.of(values)) if values else ""


def _temperatures(model: Model) -> str:
    values = sorted({one for outcome in model.outcomes for one in outcome.temperatures})
    return (
        " to ".join(f"{one:g}" for one in dict.fromkeys((values[0], values[-1]))) if values else ""
    )


def _directed(figure: str) -> str:
    return f"{figure} {'↑' if figure in HIGHER_IS_BETTER else '↓'}"


def _cell(estimate: Estimate | None, *, signed: bool = False) -> str:
    if estimate is None:
        return ""
    sign = "+" if signed and estimate.mean > 0 else ""
    error = estimate.standard_error
    if not error:
        return f"{sign}{number(estimate.mean)}"
    magnitude = int(f"{error:.1e}".partition("e")[2])  # of the rounded error: 0.0999 is 0.10
    digits = min(max(0, 1 - magnitude), 6)  # two of the error's that matter
    return f"{sign}{estimate.mean:,.{digits}f} ± {error:,.{digits}f}"
