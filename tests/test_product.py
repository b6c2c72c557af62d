"""Products that the global settings of torch do not round, with all their derivatives."""

import pytest
import torch

from diffopt.product import full, product

from .unseen import Watch, believe

SHAPES = [((3, 4), (4, 5)), ((2, 3, 4), (4, 5)), ((2, 3, 4), (2, 4, 1)), ((4,), (4, 2)),
          ((3, 0), (0, 2))]  # fmt: skip


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_the_product_rounded_once(shapes, dtype, generator, monkeypatch):
    a, b = (torch.randn(s, generator=generator, dtype=dtype) for s in shapes)
    assert torch.equal(product(a, b), a @ b)
    believe(monkeypatch)
    with Watch() as watch:
        ours = product(a, b)
    assert not watch.rounded and ours.dtype == dtype
    assert torch.equal(ours, (a.double() @ b.double()).to(dtype))


def test_types_that_differ_are_an_error_there_too(monkeypatch):
    believe(monkeypatch)
    with pytest.raises(RuntimeError, match="same dtype"):
        product(torch.ones(2, 2), torch.ones(2, 2, dtype=torch.float64))


def test_its_derivatives_are_not_rounded_either(generator, monkeypatch):
    believe(monkeypatch)
    a, b = (torch.randn(3, 3, generator=generator, requires_grad=True) for _ in range(2))
    with Watch() as watch:
        (first,) = torch.autograd.grad(product(a, b).square().sum(), a, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), b)
    assert not watch.rounded
    x, y = (v.detach().double().requires_grad_() for v in (a, b))
    (exact,) = torch.autograd.grad((x @ y).square().sum(), x, create_graph=True)
    (truth,) = torch.autograd.grad(exact.square().sum(), y)
    torch.testing.assert_close(first, exact.float(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(second, truth.float(), rtol=1e-6, atol=1e-5)


def test_mapped_over_a_dimension(generator, monkeypatch):
    believe(monkeypatch)
    a, b = torch.randn(6, 2, 3, generator=generator), torch.randn(3, 4, generator=generator)
    ours = torch.func.vmap(product, in_dims=(0, None))(a, b)
    assert torch.equal(ours, (a.double() @ b.double()).float())


def test_other_operations(generator, monkeypatch):
    believe(monkeypatch)
    L = torch.randn(4, 3, 3, generator=generator).tril() + 3 * torch.eye(3)
    v = torch.randn(4, 3, 1, generator=generator)
    with Watch() as watch:
        x = full(torch.linalg.solve_triangular, L, v, upper=False)
    assert not watch.rounded and x.dtype == torch.float32
    torch.testing.assert_close(L.double() @ x.double(), v.double(), rtol=1e-6, atol=1e-6)
