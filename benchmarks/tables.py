"""Tables in Markdown, of races."""

from __future__ import annotations

from collections.abc import Iterable


def grid(heads: list[str], rows: Iterable[list[str]]) -> list[str]:
    """The lines of a table; a short row is filled up with "-"."""
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        lines.append(f"| {' | '.join(row + ['-'] * (len(heads) - len(row)))} |")
    return lines


def cells(r: dict, keys: Iterable[str], form: str, scale: float = 1.0) -> list[str]:
    """Entries of a contender in the format `form`, "-" where there is none."""
    return [format(scale * r[k], form) if k in r else "-" for k in keys]


def errors(r: dict) -> list[str]:
    """Violation, z error and gradient error of a contender."""
    return cells(r, ("violation", "z", "gradient"), ".0e")


def left_out(rows: list[dict]) -> list[str]:
    """A section on who did not run, where and why; nothing if all ran."""
    places: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for name, r in row["contenders"].items():
            if "left out" in r:
                places.setdefault((name, r["left out"]), []).append(row["name"])
    lines = ["", "## Left out", ""] if places else []
    for (name, reason), where in places.items():
        place = "everywhere" if len(where) == len(rows) else "; ".join(where)
        lines.append(f"* {name}, {place}: {reason}")
    return lines
