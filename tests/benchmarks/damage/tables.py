"""The rows of a run as two tables: all kinds of damage together, and each kind."""

from collections.abc import Mapping, Sequence

OUTCOMES = {
    "found": "an error before any wrong row is served",
    "wrong": "rows served that are not what was written",
    "fill": "fill values served as rows",
    "printed": "rows missing, no error raised; one that names the object is printed",
    "lost": "rows silently missing or repeated",
    "hang": "no answer in time",
    "crash": "the process died",
    "harmless": "every row as it was written",
}
KINDS = {
    "flip rows": "one bit of one byte in the rows",
    "flip index": "the same in the index or headers of a file of rows",
    "flip records": "the same in a file of records",
    "cut": "a file ends early",
    "swap": "two files of rows in one another's place",
    "stale": "a file of rows is that of another run, in the same shape",
    "gone": "a file is missing",
    "every byte of records": "one bit of each byte",
    "every byte of an index": "the same",
    "short reply": "a sound store once replies with less than was asked for",
}
Rows = Sequence[Mapping[str, object]]


def markdown(rows: Rows) -> str:
    """All kinds together, as shares of the damages tried; then each kind, counted."""
    formats = list(dict.fromkeys(str(row["format"]) for row in rows))
    kinds = [kind for kind in KINDS if any(row["damage"] == kind for row in rows)]
    head = ["format", "tried", *OUTCOMES, "of those, object named"]
    first = [head, ["---"] * len(head)]
    for name in formats:
        mine = [row for row in rows if row["format"] == name]
        tried = _sum(mine, "tried")
        shares = [f"{100 * _sum(mine, outcome) / tried:.1f} %" for outcome in OUTCOMES]
        first.append([name, str(tried), *shares, str(_sum(mine, "named"))])
    second = [["format", *kinds], ["---"] * (1 + len(kinds))]
    for name in formats:
        cells = [
            _cell([row for row in rows if (row["format"], row["damage"]) == (name, kind)])
            for kind in kinds
        ]
        second.append([name, *cells])
    return "\n\n".join(_table(lines) for lines in (first, second))


def _cell(rows: Rows) -> str:
    """`12: 10 found, 2 wrong`."""
    parts = [f"{_sum(rows, outcome)} {outcome}" for outcome in OUTCOMES if _sum(rows, outcome)]
    return f"{_sum(rows, 'tried')}: {', '.join(parts)}" if rows else "-"


def _sum(rows: Rows, field: str) -> int:
    return sum(int(str(row[field])) for row in rows)


def _table(lines: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
