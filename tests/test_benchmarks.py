"""The table of the benchmarks. Nothing is timed here."""

import pytest

from benchmarks.table import Result, Row, Section, merged

ORDER = ("first", "second", "third")


def section(name: str, figure: float, bar: float | None = 1.0) -> Section:
    rows = [Row("a step / another", figure, bar=bar), Row("steps", 3)]
    return Section(name, f"How {name} is measured.", Result(rows, ["a: 1 ms"]), "Measured once.")


def test_rows_of_benchmarks_that_were_not_run_are_kept() -> None:
    before = merged("", [section("third", 0.25), section("first", 0.5)], ORDER)
    after = merged(before, [section("first", 0.75)], ORDER)
    assert after == before.replace("0.500", "0.750")
    assert "| third | a step / another | 0.250 | <= 1 | yes |" in after
    assert "How third is measured." in after


def test_a_new_benchmark_comes_in_the_given_order() -> None:
    before = merged("", [section("third", 0.25), section("first", 0.5)], ORDER)
    after = merged(before, [section("second", 0.5)], ORDER)
    assert [line for line in after.splitlines() if line.startswith("## ")] == [
        "## first", "## second", "## third"
    ]  # fmt: skip
    assert merged(after, [], ORDER) == after


@pytest.mark.parametrize(
    ("row", "shown"),
    [
        (Row("x", 1.0, bar=1.0), "yes"),
        (Row("x", 1.0001, bar=1.0), "**no**"),
        (Row("x", 0.9, bar=0.9, at_least=True), "yes"),
        (Row("x", 0.8999, bar=0.9, at_least=True), "**no**"),
        (Row("x", float("nan"), bar=1.0), "**no**"),
        (Row("x", 7.0), ""),
    ],
)
def test_an_unmet_bar_is_marked(row: Row, shown: str) -> None:
    assert row.cells()[-1] == shown
