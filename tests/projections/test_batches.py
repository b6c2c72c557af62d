"""Batches: loops, vmap, shared parameters, bad samples, float32."""

import contextlib

import pytest
import torch
from torch import Tensor
from torch.func import vmap

from diffopt import ConvergenceWarning

from .sets import BATCH, Drawn


def test_a_batch_is_a_loop_and_vmap(drawn):
    values = (drawn.x, *drawn.parameters.values())
    z = drawn.function(*values)
    loop = torch.stack([drawn.function(*(v[i] for v in values)) for i in range(BATCH)])
    torch.testing.assert_close(loop, z, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(vmap(drawn.function)(*values), z, rtol=1e-10, atol=1e-10)
    x = torch.stack([drawn.x, 2 * drawn.x])  # one more dimension of x than of the parameters
    torch.testing.assert_close(drawn.project(x)[0], z, rtol=1e-10, atol=1e-10)


def test_a_shared_parameter_gets_the_sum_of_the_gradients(adjustable):
    given = adjustable.parameters
    shared = {k: v[0].clone().requires_grad_() for k, v in given.items()}
    own = {k: v[0].expand_as(v).clone().requires_grad_() for k, v in given.items()}
    for parameters in (shared, own):
        adjustable.project(**parameters).square().sum().backward()
    for k in given:
        torch.testing.assert_close(shared[k].grad, own[k].grad.sum(0), rtol=1e-8, atol=1e-8)


def results(drawn: Drawn, x: Tensor, parameters: dict[str, Tensor]) -> list[Tensor]:
    """The answer, and the gradient of the sum of its squares where they are finite."""
    inputs = [v.clone().requires_grad_() for v in (x, *parameters.values())]
    z = drawn.function(*inputs)
    loss = torch.where(z.isfinite(), z, 0.0).square().sum()
    return [z.detach(), *torch.autograd.grad(loss, inputs, materialize_grads=True)]


def told(drawn: Drawn):
    """Where a NaN is reported, the warning that says so is expected."""
    reports = drawn.case.reports
    return pytest.warns(ConvergenceWarning) if reports else contextlib.nullcontext()


def check_that_sample_2_is_alone(drawn: Drawn, x: Tensor, parameters: dict[str, Tensor]) -> None:
    keep = [i for i in range(BATCH) if i != 2]
    with told(drawn):
        bad = results(drawn, x, parameters)
    assert bad[0][2].isnan().any()
    for b, g in zip(bad, results(drawn, drawn.x, drawn.parameters), strict=True):
        torch.testing.assert_close(b[keep], g[keep], rtol=1e-12, atol=1e-12)
    assert bad[1].isfinite().all()


def test_a_nan_of_x_stays_in_its_sample(drawn):
    x = drawn.x.clone()
    x.view(BATCH, -1)[2, 0] = torch.nan
    check_that_sample_2_is_alone(drawn, x, drawn.parameters)


def test_a_nan_of_a_parameter_stays_in_its_sample(adjustable):
    for name in adjustable.parameters:
        parameters = {k: v.clone() for k, v in adjustable.parameters.items()}
        parameters[name].view(BATCH, -1)[2, 0] = torch.nan
        check_that_sample_2_is_alone(adjustable, adjustable.x, parameters)


def test_a_nan_does_not_reach_what_is_shared(adjustable):
    parameters = {k: v[0] for k, v in adjustable.parameters.items()}
    x = adjustable.x.clone()
    x[2] = torch.nan
    with told(adjustable):
        bad = results(adjustable, x, parameters)
    good = results(adjustable, x[[0, 1, 3, 4, 5, 6, 7]], parameters)
    for b, g in zip(bad[2:], good[2:], strict=True):
        torch.testing.assert_close(b, g, rtol=1e-10, atol=1e-10)


def test_float32_stays_float32(drawn):
    x, *parameters = (v.detach().float().requires_grad_() for v in drawn.leaves())
    z = drawn.function(x, *parameters)
    assert z.dtype == torch.float32
    bound = 1e-4 * (1 + drawn.x.abs().max())
    assert (z - drawn.project()).abs().max() <= bound
    assert torch.autograd.grad(z.sum(), x)[0].dtype == torch.float32
