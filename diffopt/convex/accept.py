"""Whether a CVXPY problem can be a layer, and what to change if not: `check_problem`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ..optional import package

# those of `solve_qp` that mean the same for a program that was rewritten
OPTIONS = "order", "degenerate", "smoothing", "proximal", "on_failure"


def check_problem(
    problem: Any, parameters: Sequence[Any], variables: Sequence[Any], gp: bool
) -> None:
    """Raise a `ValueError` that says what to change unless the arguments describe a layer.

    Args:
        problem: has to be convex, without integers, and DPP.
        parameters: all of the problem, each once.
        variables: of the problem, or multipliers of its constraints.
        gp: whether it is a geometric program.
    """
    cp = package("cvxpy", extra="cvxpy")
    if not isinstance(problem, cp.Problem):
        raise ValueError(f"problem is a {type(problem).__name__}: expected a cvxpy.Problem")
    _check_kind("parameters", parameters, cp.Parameter)
    _check_kind("variables", variables, cp.Variable)
    _check_parameters(problem, parameters)
    _check_variables(problem, variables)
    if problem.is_mixed_integer():
        raise ValueError(
            "problem has boolean or integer variables, whose solution has no derivative: relax "
            "them, for example to 0 <= x <= 1"
        )
    _check_gp(problem) if gp else _check_convex(problem)


def check_options(options: Iterable[str]) -> None:
    """Raise a `ValueError` unless these are names of options of a layer."""
    for name in options:
        if name in ("infeasible", "penalty"):
            raise ValueError(
                f"{name!r} is no option of a layer: rows that were rewritten cannot be shifted as "
                "the user wrote them; add a variable s >= 0 to them, and its price to the objective"
            )
        if name not in OPTIONS:
            raise ValueError(f"{name!r} is no option of a layer: expected one of {OPTIONS}")


def _check_kind(name: str, given: Sequence[Any], kind: type) -> None:
    if not isinstance(given, list | tuple) or not given:
        raise ValueError(f"{name}={given!r}: expected a list of at least one cvxpy.{kind.__name__}")
    for item in given:
        if not isinstance(item, kind):
            raise ValueError(
                f"{name} has a {type(item).__name__} in it: expected cvxpy.{kind.__name__} objects"
            )
    names, unique = [item.name() for item in given], {item.id for item in given}
    if len(unique) < len(given):
        raise ValueError(f"{name} names one twice: {', '.join(names)}")


def _check_parameters(problem: Any, parameters: Sequence[Any]) -> None:
    own, given = {p.id: p for p in problem.parameters()}, {p.id: p for p in parameters}
    missing = [p for i, p in own.items() if i not in given]
    foreign = [p for i, p in given.items() if i not in own]
    if missing:
        raise ValueError(
            f"parameters lacks {_names(missing)}, which the problem has: list all of them, or "
            "make what shall not change a constant"
        )
    if foreign:
        raise ValueError(
            f"parameters has {_names(foreign)}, which the problem does not use: leave it out"
        )
    for p in parameters:
        for attribute in ("diag", "sparsity", "complex", "hermitian", "imag"):
            if p.attributes.get(attribute):
                raise ValueError(
                    f"parameter {p.name()} is declared {attribute}: expected a real one without "
                    "it; for a diagonal matrix take a vector v and cp.multiply(v, ...)"
                )


def _check_variables(problem: Any, variables: Sequence[Any]) -> None:
    known = {v.id for v in problem.variables()}
    known |= {v.id for c in problem.constraints for v in c.dual_variables}
    foreign = [v for v in variables if v.id not in known]
    if foreign:
        raise ValueError(
            f"variables has {_names(foreign)}, which is neither a variable of the problem nor a "
            "dual variable of one of its constraints"
        )
    for v in variables:
        for attribute in ("diag", "sparsity"):
            if v.attributes.get(attribute):
                raise ValueError(
                    f"variable {v.name()} is declared {attribute}, and cvxpylayers puts the wrong "
                    "entries in it: ask for a vector v of its entries, which the problem has in "
                    "its place, for example as cp.diag(v)"
                )
    if any(v.is_complex() for v in problem.variables()):
        raise ValueError("problem has complex variables: write it with real and imaginary parts")


def _check_convex(problem: Any) -> None:
    if problem.is_dpp(quad_form_dpp="qp"):
        return
    parts = {"the objective": problem.objective} | {
        f"constraint {k} ({c})": c for k, c in enumerate(problem.constraints)
    }
    for name, part in parts.items():
        if not part.is_dcp():
            raise ValueError(
                f"problem is not convex: {name} does not follow the DCP rules (minimise convex, "
                "maximise concave; convex <= concave; affine == affine). A parameter counts as of "
                "no sign, and a matrix as indefinite, unless declared nonneg, nonpos or PSD=True"
            )
    wrong = [name for name, part in parts.items() if not part.is_dcp(dpp=True)]
    raise ValueError(
        f"problem is not DPP in {', '.join(wrong) or 'its parameters'}: a product may hold one "
        "parameter, times an expression without any. Make a new parameter of a product of two, "
        "or of a function of one (1 / p, exp(p)), and compute it in PyTorch; a quad_form with a "
        "parameter as its matrix may stand in the objective only, and its vector may hold none"
    )


def _check_gp(problem: Any) -> None:
    if not problem.is_dgp():
        raise ValueError(
            "gp=True, but problem is no geometric program: expected positive variables and "
            "posynomials, see cvxpy's rules of DGP"
        )
    if not problem.is_dpp("dgp"):
        raise ValueError(
            "problem is not DPP as a geometric program: a parameter may stand in an exponent, or "
            "be a factor, but not both"
        )


def _names(items: Iterable[Any]) -> str:
    return ", ".join(item.name() for item in items)
