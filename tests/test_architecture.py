"""Arrows point down: which part of the package may import which, read from the source."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# part: the parts that it may import (itself always)
ARROWS = {
    "optional": set(),
    "solution": set(),
    "tree": set(),
    "state": set(),
    "device": set(),
    "product": {"device"},
    "iterate": {"solution"},
    "replay": {"device", "tree"},
    "unattended": {"device", "iterate", "replay", "solution", "tree"},
    "linear": {"_native", "iterate", "product", "solution"},
    "operators": {"linear", "solution", "tree"},
    "nodes": {"operators", "solution"},
    "implicit": {"nodes", "operators"},
    "backward": {"implicit", "linear", "operators", "solution"},
    "_native": set(),
    "qp": {
        "_native", "device", "implicit", "nodes", "operators", "iterate", "linear", "product",
        "solution", "tree", "unattended",
    },
    "sparse": {"implicit", "operators", "optional", "qp", "solution"},
    "fixed_point": {
        "_native", "backward", "implicit", "iterate", "linear", "nodes", "operators", "solution",
        "state",
    },
    "ode": {
        "_native", "fixed_point", "implicit", "iterate", "nodes", "operators", "solution", "state",
    },
    "convex": {"nodes", "operators", "optional", "qp", "solution", "tree"},
    "projections": {"implicit", "iterate", "linear", "operators", "qp", "solution"},
    "projected_gradient": {
        "backward", "implicit", "iterate", "linear", "nodes", "operators", "solution",
    },
    "argmin": {"implicit", "iterate", "nodes", "optional", "qp", "solution", "tree"},
    "nn": {
        "argmin", "convex", "fixed_point", "ode", "optional", "projected_gradient", "qp",
        "solution", "state", "tree",
    },
    "doctor": {"_native", "qp"},
    "__init__": {
        "argmin", "convex", "doctor", "fixed_point", "implicit", "nn", "ode",
        "projected_gradient", "projections", "qp", "solution", "sparse",
    },
}  # fmt: skip
# inside diffopt/qp, lowest first: a file may import those before it
QP_ORDER = [
    "problem", "arguments", "stack", "diagnosis", "scaling", "factors", "structure", "kkt",
    "newton", "start", "certificates", "interior_point", "options", "path", "polish", "homogeneous",
    "reference", "cores", "native", "cuda", "fused", "conditions", "engines", "dependence",
    "degeneracy", "point", "smooth", "engine", "root", "lpgd", "layer", "relaxed", "direct",
    "answer", "eager", "compiled", "__init__",
]  # fmt: skip
FILES = sorted((ROOT / "diffopt").rglob("*.py"))


def imports(path):
    """(module, level, inside a function) of every `from ... import` and `import` in a file."""
    tree = ast.parse(path.read_text())
    inner = {
        id(node)
        for f in ast.walk(tree)
        if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(f)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            for module in [node.module] if node.module else [alias.name for alias in node.names]:
                yield module, node.level, id(node) in inner
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, 0, id(node) in inner


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_arrows_point_down(path):
    folder = path.parent.name
    part = folder if folder != "diffopt" else path.stem
    for module, level, inside in imports(path):
        assert not inside, f"{module} is imported inside a function"
        top = module.split(".")[0]
        assert top not in ("problems", "diffopt", "tests"), f"{path.name} imports {module}"
        if level == (2 if folder != "diffopt" else 1):
            assert top in ARROWS[part], f"{part} imports {top}"
        elif level == 1 and folder == "qp":
            assert QP_ORDER.index(top) < QP_ORDER.index(path.stem), f"{path.stem} imports {top}"


def test_every_part_is_in_the_table():
    parts = {p.stem for p in (ROOT / "diffopt").glob("*.py")}
    parts |= {p.parent.name for p in (ROOT / "diffopt").glob("*/__init__.py")}
    assert parts == set(ARROWS)
    assert {p.stem for p in (ROOT / "diffopt" / "qp").glob("*.py")} == set(QP_ORDER)


@pytest.mark.parametrize("path", sorted((ROOT / "problems").glob("*.py")), ids=lambda p: p.name)
def test_problems_use_public_names_only(path):
    for module, level, _ in imports(path):
        assert level or module.split(".")[0] != "diffopt" or module == "diffopt"
