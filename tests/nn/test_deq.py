"""`DEQ`: the same function throughout a solve, and a good citizen among modules."""

import copy

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn
from torch.nn.utils import parametrizations

from diffopt import (
    DEQ,
    Anderson,
    Broyden,
    NewtonKrylov,
    Picard,
    fixed_point,
    jacobian_penalty,
    spectral_radius,
)

F64 = torch.float64
TIGHT = Anderson(rtol=1e-12, atol=1e-13)


class Cell(nn.Module):
    """tanh(W z + U x), with what is asked for in between."""

    def __init__(self, width=6, between=None, scale=0.5, **options):
        super().__init__()
        self.z = nn.Linear(width, width, bias=False, dtype=F64)
        self.x = nn.Linear(width, width, dtype=F64)
        nn.init.orthogonal_(self.z.weight, gain=scale)
        self.between = nn.Identity() if between is None else between

    def forward(self, z, x):
        return torch.tanh(self.between(self.z(z)) + self.x(x))


@pytest.fixture
def x():
    return torch.randn(8, 6, generator=torch.Generator().manual_seed(1), dtype=F64)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def small(norm):
    """Normalisation makes small states large: only with a small weight is it contractive."""
    nn.init.constant_(norm.weight, 0.1)
    return norm


BETWEEN = {
    "nothing": lambda: nn.Identity(),
    "dropout": lambda: nn.Dropout(0.4),
    "batch norm": lambda: nn.BatchNorm1d(6, dtype=F64),
    "layer norm": lambda: small(nn.LayerNorm(6, dtype=F64)),
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Linear(6, 6, dtype=F64)),
    "weight norm": lambda: parametrizations.weight_norm(nn.Linear(6, 6, dtype=F64)),
}


@pytest.mark.parametrize("name", BETWEEN)
@pytest.mark.parametrize("training", [True, False])
class TestOneFunction:
    def test_training_and_evaluation_find_a_fixed_point(self, name, training, x):
        layer = DEQ(Cell(between=BETWEEN[name](), scale=0.3), solver=TIGHT).train(training)
        out = layer.solve(x)
        assert (out.status == 0).all() and (out.residual <= 1).all()

    def test_the_gradient_is_that_of_finite_differences(self, name, training, x):
        layer = DEQ(Cell(between=BETWEEN[name](), scale=0.3), solver=TIGHT).train(training)
        weight = layer.f.x.weight
        statistics = copy.deepcopy(layer.state_dict())

        def loss(value):
            layer.load_state_dict(statistics)
            with torch.no_grad():
                weight.copy_(value)
            torch.manual_seed(3)  # the masks
            return layer(x).square().sum()

        here, d = weight.detach().clone(), torch.zeros_like(weight)
        (g,) = torch.autograd.grad(loss(here), weight)
        d[1, 2] = 1e-6
        slope = (loss(here + d) - loss(here - d)).item() / 2e-6
        assert g[1, 2].item() == pytest.approx(slope, rel=1e-6, abs=1e-8)


def test_dropout_has_new_masks_at_each_call_and_leaves_the_generator_to_others(x):
    layer = DEQ(Cell(between=nn.Dropout(0.5), scale=0.3), solver=TIGHT)
    assert not torch.equal(layer(x), layer(x))
    after = []
    for rtol in (1e-3, 1e-9):  # other numbers of evaluations
        torch.manual_seed(5)
        layer.solver = Picard(rtol=rtol)
        layer(x)
        after.append(torch.rand(3))
    assert torch.equal(*after)


def test_any_random_module_is_the_same_function_throughout(x):
    class Attending(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix = nn.MultiheadAttention(6, 2, dropout=0.3, batch_first=True, dtype=F64)

        def forward(self, z, x):
            z = z.unsqueeze(1)
            return torch.tanh(0.3 * self.mix(z, z, z)[0].squeeze(1) + x)

    layer = DEQ(Attending(), solver=TIGHT)
    assert (layer.solve(x).status == 0).all()


@pytest.mark.parametrize("name", ["dropout", "batch norm", "spectral norm"])
def test_the_mode_of_the_call_is_that_of_its_backward_pass(name, x):
    layer = DEQ(Cell(between=BETWEEN[name](), scale=0.3), solver=TIGHT)
    grads = []
    state = copy.deepcopy(layer.state_dict())
    for change in (False, True):
        layer.train().load_state_dict(state)
        torch.manual_seed(2)
        z = layer(x)
        layer.train(not change)
        grads.append(torch.autograd.grad(z.square().sum(), layer.f.x.weight)[0])
        assert all(m.training != change for m in layer.modules())
    assert torch.equal(*grads)


def test_what_changed_before_the_backward_pass_raises(x):
    layer = DEQ(Cell(), solver=TIGHT)
    z = layer(x)
    with torch.no_grad():
        layer.f.z.weight.mul_(0.5)
    with pytest.raises(RuntimeError, match="changed in place"):
        z.sum().backward()
    hooked = DEQ(Cell(between=nn.utils.spectral_norm(nn.Linear(6, 6, dtype=F64))))
    with pytest.raises(RuntimeError, match="parametrizations"):
        hooked(x)


def test_a_failed_sample_is_not_counted(x):
    norm = nn.BatchNorm1d(6, dtype=F64)
    layer = DEQ(Cell(between=norm, scale=0.3), solver=TIGHT, on_failure="nan")
    x = x.clone()
    x[3] = torch.nan
    assert layer(x)[3].isnan().all()
    assert norm.running_mean.isfinite().all() and norm.num_batches_tracked == 1


def test_defaults_in_float32_have_gradients(x):
    layer, exact = DEQ(Cell().float()), DEQ(Cell(), solver=TIGHT)
    exact.load_state_dict(layer.state_dict())
    for own in (layer, exact):
        own(x.to(own.f.z.weight.dtype)).square().sum().backward()
    got, want = layer.f.z.weight.grad, exact.f.z.weight.grad
    assert (got - want).norm() < 1e-3 * want.norm()


def test_autocast_and_inference(x):
    layer = DEQ(Cell().float())
    with torch.autocast("cpu", torch.bfloat16):
        z = layer(layer.f.x(x.float()).detach())
    z.sum().backward()
    assert z.dtype == torch.float32 and layer.f.z.weight.grad.norm() > 0
    with torch.inference_mode():
        layer(x.float())
    layer(x.float(), z0=layer.last.z).sum().backward()


def test_statistics_are_updated_once_a_call(x):
    norm = nn.BatchNorm1d(6, dtype=F64)
    layer = DEQ(Cell(between=norm, scale=0.3), solver=TIGHT)
    layer(x)
    layer(x)
    assert norm.num_batches_tracked == 2 and norm.training
    layer.eval()(x)
    assert norm.num_batches_tracked == 2


def test_training_and_evaluation_have_their_own_solvers(x):
    layer = DEQ(Cell(), solver=Picard(rtol=1e-2), eval_solver=Picard(rtol=1e-10))
    loose = layer.solve(x).steps.max()
    assert layer.eval().solve(x).steps.min() > loose


def test_a_warm_start_saves_steps(x):
    layer = DEQ(Cell(), solver=TIGHT)
    z = layer(x)
    cold = layer.last.steps.max()
    torch.testing.assert_close(layer(x, z0=z.detach()), z)
    assert layer.last.steps.max() == 0 < cold


def test_several_scales_and_a_start_of_ones_own(x):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 6, dtype=F64), nn.Linear(6, 3, dtype=F64)

        def forward(self, z, x):
            return torch.tanh(self.a(z[1]) / 2 + x), torch.tanh(self.b(z[0]) / 2)

    layer = DEQ(Two(), solver=TIGHT, start=lambda x: (torch.zeros_like(x), x.new_zeros(8, 3)))
    u, v = layer(x)
    again = layer.f((u, v), x)
    torch.testing.assert_close((u, v), again)
    (u.sum() + v.sum()).backward()
    assert all(p.grad.abs().max() > 0 for p in layer.parameters())


def test_states_on_the_way_come_nearer(x):
    layer = DEQ(Cell(), solver=Picard(rtol=1e-12))
    *states, z = layer.states(x, at=(1, 4, 9))
    errors = [(s - z).norm().item() for s in states]
    assert errors[0] > 4 * errors[1] > 16 * errors[2]
    assert all(torch.autograd.grad(s.sum(), layer.f.z.weight)[0].norm() > 0 for s in states)
    with pytest.raises(ValueError, match="increasing"):
        layer.states(x, at=(3, 3))


@pytest.mark.parametrize("name", ["nothing", "dropout", "batch norm"])
@pytest.mark.parametrize("training", [True, False])
def test_the_states_are_those_of_the_solve(name, training, x):
    """f of the best iterate of so many steps, with the masks and statistics of the same call."""
    layer = DEQ(Cell(between=BETWEEN[name](), scale=0.3), solver=TIGHT).train(training)
    before, seen = copy.deepcopy(layer.state_dict()), []
    hook = layer.f.register_forward_hook(lambda f, z, out: seen.append((z[0].detach(), out)))
    torch.manual_seed(7)
    z = layer(x)
    hook.remove()
    once = copy.deepcopy(layer.state_dict())
    layer.load_state_dict(before)
    torch.manual_seed(7)
    *states, last = layer.states(x, at=(1, 3))
    assert torch.equal(last, z)
    for k, state in zip((1, 3), states, strict=True):
        gaps = torch.stack([(out - at).norm(dim=1) for at, out in seen[: k + 1]])
        best = gaps.argmin(0)
        for i in range(len(x)):
            torch.testing.assert_close(state[i], seen[int(best[i])][1][i], rtol=1e-12, atol=1e-14)
    for key, value in layer.state_dict().items():
        assert torch.equal(value, once[key]), key  # counted once


@pytest.mark.parametrize("outer", [Anderson, NewtonKrylov, Broyden])
def test_one_inside_another(outer, x):
    """u = tanh(V u + z) inside z = u / 2 + x; together one fixed point of (u, z)."""

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = DEQ(Cell(), solver=TIGHT)

        def forward(self, z, x):
            return self.inner(z) / 2 + x

    layer = DEQ(Outer(), solver=outer(rtol=1e-12, atol=1e-13))
    cell = layer.f.inner.f
    z = layer(x)
    assert (layer.last.status == 0).all() and layer.last.steps.max() < 20
    both = fixed_point(lambda v: (cell(*v), v[0] / 2 + x), (x, x), solver=TIGHT).z[1]
    torch.testing.assert_close(z, both, rtol=1e-9, atol=1e-10)
    mine, theirs = (
        torch.autograd.grad(v.square().sum(), list(cell.parameters())) for v in (z, both)
    )
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


def test_state_dict_and_deepcopy(x):
    layer = DEQ(Cell(), solver=TIGHT)
    layer(x).sum().backward()
    other = DEQ(Cell(), solver=TIGHT)
    other.load_state_dict(layer.state_dict())
    assert list(layer.state_dict()) == [f"f.{k}" for k in layer.f.state_dict()]
    assert torch.equal(other(x), layer(x))
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))
    z = layer(x)
    with torch.no_grad():
        z.zero_()
    assert layer.last.z.norm() > 0


def test_the_log_has_three_numbers(x):
    class Writer(dict):
        def add_scalar(self, tag, value, step):
            self[tag, step] = float(value)

    layer, writer = DEQ(Cell()), Writer()
    with pytest.raises(ValueError, match="before the first call"):
        layer.log(writer, 0)
    layer(x)
    layer.log(writer, 7)
    assert set(writer) == {("deq/steps", 7), ("deq/residual", 7), ("deq/failed", 7)}
    assert writer["deq/failed", 7] == 0 < writer["deq/steps", 7]


def test_wrong_use_says_what_is_wrong(x):
    with pytest.raises(ValueError, match="pass z0 or start"):
        DEQ(Cell())()
    with pytest.raises(ValueError, match="same shape"):
        DEQ(Cell())(x, z0=x.new_zeros(1, 6))


def test_a_compiled_function(x):
    plain = DEQ(Cell(), solver=TIGHT)
    compiled = DEQ(torch.compile(plain.f, backend="aot_eager"), solver=TIGHT)
    a, b = plain(x), compiled(x)
    torch.testing.assert_close(a, b)
    g, h = (torch.autograd.grad(z.square().sum(), plain.f.z.weight)[0] for z in (a, b))
    torch.testing.assert_close(g, h)


def test_the_penalty_is_the_frobenius_norm_and_can_be_trained():
    """f(z) = M z: |M|^2 / n; for random signs exact in the mean only, so many samples."""
    M = torch.tensor([[0.5, -0.3], [0.2, 0.8]], dtype=F64, requires_grad=True)
    z = torch.zeros(3, 2, dtype=F64)
    generator = torch.Generator().manual_seed(0)
    penalty = jacobian_penalty(lambda z: z @ M.T, z, samples=4000, generator=generator)
    exact = M.detach().square().sum() / 2
    # Its variance is 2 (offdiagonal of MM')^2 = 2 * 0.14^2 * 2 / 4: three sigma of 4000 samples
    assert (penalty - exact).abs().max() < 3 * (2 * 0.14**2) ** 0.5 / 4000**0.5
    (g,) = torch.autograd.grad(penalty.sum(), M)
    assert (g - 3 * M.detach()).abs().max() < 0.1


@pytest.mark.parametrize(
    "eigenvalues, radius", [((0.9, 0.5), 0.9), ((-0.7, 0.2), 0.7), ("rotation", 0.6)]
)
def test_spectral_radius(eigenvalues, radius):
    if eigenvalues == "rotation":
        M = 0.6 * torch.tensor([[0.8, -0.6], [0.6, 0.8]], dtype=F64)
    else:
        V = torch.tensor([[1.0, 1.0], [0.0, 2.0]], dtype=F64)
        M = V @ torch.diag(torch.tensor(eigenvalues, dtype=F64)) @ torch.linalg.inv(V)
    found = spectral_radius(lambda z: z @ M.T, torch.zeros(2, 2, dtype=F64), steps=100)
    assert (found - radius).abs().max() < 1e-6


def _replica(rank, file, x, weights, out):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{file}", rank=rank, world_size=2
    )
    layer = DEQ(Cell(), solver=TIGHT)
    layer.load_state_dict(weights)
    wrapped = nn.parallel.DistributedDataParallel(layer)
    wrapped(x[4 * rank : 4 * rank + 4]).square().mean().backward()
    if rank == 0:
        torch.save([p.grad for p in layer.parameters()], out)
    torch.distributed.destroy_process_group()


def test_two_replicas_have_the_gradient_of_the_whole_batch(x, tmp_path):
    layer = DEQ(Cell(), solver=TIGHT)
    layer(x).square().mean().backward()
    arguments = tmp_path / "store", x, layer.state_dict(), tmp_path / "grads"
    mp.spawn(_replica, arguments, nprocs=2)
    grads = torch.load(tmp_path / "grads")
    for mine, theirs in zip(layer.parameters(), grads, strict=True):
        torch.testing.assert_close(mine.grad, theirs, rtol=1e-9, atol=1e-12)
