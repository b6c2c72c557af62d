"""Statuses, and what is said of the samples that failed."""

import warnings

import pytest
import torch

from diffopt import ConvergenceError, ConvergenceWarning, Status
from diffopt.solution import check_on_failure, fill_failed, report, succeeded

STATUS = torch.tensor([0, 3, 1, 2, 3, 3, 3, 3, 3, 3])
RESIDUAL = torch.linspace(0, 9, 10)


def test_every_status_has_a_message():
    assert all(len(status.message) > 10 for status in Status)


def test_success_is_convergence_at_full_or_reduced_accuracy():
    assert succeeded(torch.arange(7)).tolist() == [True, True] + [False] * 5


def test_a_warning_names_samples_status_residual_and_remedy():
    with pytest.warns(ConvergenceWarning) as caught:
        report(STATUS, RESIDUAL, "warn", "the solve")
    assert len(caught) == 1
    text = str(caught[0].message)
    assert text.startswith("the solve: 8 of 10 samples failed\n")
    assert "sample 3: ITERATION_LIMIT (residual 3.0e+00): stopped before" in text
    assert "sample 1, 4, 5, 6, 7, ...: PRIMAL_INFEASIBLE (residual 9.0e+00)" in text
    assert "raise max_steps" in text


def test_raise_and_silence():
    with pytest.raises(ConvergenceError, match="8 of 10 samples"):
        report(STATUS, RESIDUAL, "raise", "the solve")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report(STATUS, RESIDUAL, "ignore", "the solve")
        report(STATUS, RESIDUAL, "nan", "the solve")
        report(STATUS[:1], RESIDUAL[:1], "warn", "the solve")


def test_unknown_policies_are_refused():
    with pytest.raises(ValueError, match="on_failure='shout' is not one of"):
        check_on_failure("shout")


def test_failed_samples_are_filled():
    value = fill_failed(torch.ones(10, 2), STATUS, 0.0)
    assert value[:, 0].tolist() == [1, 0, 1, 0, 0, 0, 0, 0, 0, 0]
