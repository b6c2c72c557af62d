"""The same answers on a GPU, where there is one."""

import pytest
import torch

from diffopt import Status, solve_qp

from .. import cases

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("name", cases.QPS)
def test_answers_and_gradients_equal_those_of_the_cpu(name):
    a = cases.arguments(cases.QPS[name])
    results = []
    for device in ("cpu", "cuda"):
        leaves = {k: v.detach().to(device).requires_grad_() for k, v in a.items()}
        sol = solve_qp(**leaves)
        assert sol.z.device.type == device and (sol.status == Status.CONVERGED).all()
        grads = torch.autograd.grad((sol.z + sol.mu).pow(2).sum() + sol.lam.sum(), leaves.values())
        results.append([sol.z, sol.lam, sol.nu, sol.mu, *grads])
    for ours, truth in zip(*results[::-1], strict=True):
        torch.testing.assert_close(ours.cpu(), truth, rtol=1e-7, atol=1e-8)
