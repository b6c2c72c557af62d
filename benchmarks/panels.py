"""What the pictures of races have in common."""

from __future__ import annotations

from typing import Any

# Of contenders, in this order, in every picture.
COLOURS = ["native", "torch", "moreau", "qpth", "cuda", "moreau_ipm"]


def panels(curves: list[dict], bold: str, more: int = 0) -> tuple[Any, Any]:
    """(figure, axes): problems a second, forward and backward, against the batch size, a panel for
    each n, and `more` empty ones; the line of the contender `bold` is thick."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    sizes = sorted({c["n"] for c in curves})
    count = len(sizes) + more
    figure, axes = plt.subplots(1, count, figsize=(4.2 * count, 4), squeeze=False)
    for ax, n in zip(axes[0], sizes, strict=False):
        rows = [c for c in curves if c["n"] == n]
        draw(ax, rows, "batch", lambda c, r: c["batch"] / r["both"] * 1e3, bold)
        equations = f", {rows[0]['e']} equalities" if rows[0]["e"] else ""
        ax.set_title(f"n = {n}, {rows[0]['m']} inequalities{equations}", fontsize=10)
        ax.set_xlabel("batch size")
    axes[0][0].set_ylabel("problems a second, forward + backward")
    axes[0][0].legend(frameon=False)
    return figure, axes[0]


def draw(ax: Any, rows: list[dict], x: str, y: Any, bold: str) -> None:
    """A line for each contender of `rows`: y(row, its times) against the entry `x` of the row."""
    for name in rows[0]["contenders"]:
        there = [(c, c["contenders"][name]) for c in rows if "both" in c["contenders"][name]]
        width = {"lw": 2.5, "zorder": 3} if name == bold else {"lw": 1.5}
        if there:
            ax.loglog([c[x] for c, _ in there], [y(c, r) for c, r in there], "o-", ms=4,
                      color=f"C{COLOURS.index(name)}", label=name, **width)  # fmt: skip
    ax.grid(True, which="major", alpha=0.3)
