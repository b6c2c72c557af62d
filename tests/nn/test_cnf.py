"""`CNF`: densities known in closed form, and the definition: what is drawn has the density."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.distributions import Exponential, Independent, MultivariateNormal, Normal

from diffopt import (
    CNF,
    RK4,
    Checkpointed,
    ConvergenceError,
    ConvergenceWarning,
    Discrete,
    Dopri5,
    Dopri8,
    ExactTrace,
    Hutchinson,
    odeint,
)
from diffopt.ode import Unrolled

F64 = torch.float64
TIGHT = Dopri8(rtol=1e-12, atol=1e-13)
FIELDS = {  # name: A of y' = A y
    "one dimension": [[0.7]],
    "shear": [[0.0, 1.5], [0.0, 0.0]],
    "rotation": [[0.0, -2.0], [2.0, 0.0]],
    "saddle": [[1.0, 0.3], [0.2, -1.5]],
    "three dimensions": [[0.5, 0.2, 0.0], [-1.0, 0.1, 0.4], [0.3, 0.0, -0.6]],
}
INTERVALS = [(0.0, 1.0), (1.0, 0.0), (-0.5, 1.0)]


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=F64)


class Net(nn.Module):
    """A smooth field, that depends on the time."""

    def __init__(self, d=2, width=8, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.Sequential(nn.Linear(d + 1, width), nn.Tanh(), nn.Linear(width, d))
        self.double()

    def forward(self, t, y):
        return 2 * self.layers(torch.cat([t, y], 1))


def linear(A, *, t=(0.0, 1.0), solver=TIGHT, **options):
    """The flow of y' = A y, and the normal distribution at its end."""
    A = torch.tensor(A, dtype=F64)
    base = Independent(Normal(A.new_zeros(len(A)), 1.0), 1)
    E = torch.linalg.matrix_exp((t[1] - t[0]) * A)
    flow = CNF(lambda t, y: y @ A.mT, base, t, solver=solver, **options)
    return flow, E, MultivariateNormal(A.new_zeros(len(A)), E @ E.mT)


@pytest.mark.parametrize("t", INTERVALS)
@pytest.mark.parametrize("name", FIELDS)
class TestLinearFields:
    def test_the_density_is_that_of_the_normal_distribution(self, name, t):
        flow, _, truth = linear(FIELDS[name], t=t)
        x = 2 * normal(20, flow.d)
        torch.testing.assert_close(flow(x), truth.log_prob(x), rtol=0, atol=1e-9)

    def test_there_and_back(self, name, t):
        flow, E, _ = linear(FIELDS[name], t=t)
        z = normal(20, flow.d)
        x, forward = flow.transform(z)
        again, backward = flow.inverse(x)
        torch.testing.assert_close(x, z @ E.mT, rtol=0, atol=1e-9)
        torch.testing.assert_close(again, z, rtol=0, atol=1e-9)
        torch.testing.assert_close(forward, E.logdet().expand(20), rtol=0, atol=1e-9)
        torch.testing.assert_close(backward, -forward, rtol=0, atol=1e-9)

    def test_the_score_is_that_of_the_normal_distribution(self, name, t):
        flow, _, truth = linear(FIELDS[name], t=t)
        x = normal(20, flow.d).requires_grad_()
        (score,) = torch.autograd.grad(flow(x).sum(), x)
        torch.testing.assert_close(score, -x @ truth.precision_matrix, rtol=0, atol=1e-8)

    def test_draws_have_its_mean_and_covariance(self, name, t):
        """Of 4000 draws; five standard deviations of a mean of squares, sqrt(2 / 4000)."""
        torch.manual_seed(0)
        flow, E, _ = linear(FIELDS[name], t=t, solver=Dopri5())
        white = flow.sample(4000) @ torch.linalg.inv(E).mT
        assert white.mean(0).abs().max() < 5 / 4000**0.5
        assert (white.mT @ white / 4000 - torch.eye(flow.d)).abs().max() < 5 * (2 / 4000) ** 0.5


def test_a_field_that_is_not_linear():
    """y' = exp(-y) has y(1) = log(exp(z) + 1), and dx/dz = exp(z - x)."""
    flow = CNF(lambda t, y: (-y).exp(), 1, solver=TIGHT)
    z = normal(20, 1)
    x, log_det = flow.transform(z)
    torch.testing.assert_close(x, (z.exp() + 1).log(), rtol=0, atol=1e-9)
    torch.testing.assert_close(log_det, (z - x).squeeze(1), rtol=0, atol=1e-9)


def test_the_log_determinant_is_that_of_the_jacobian():
    flow = CNF(Net(d=3), 3, solver=RK4(step=0.01))
    z = normal(2, 3)
    _, log_det = flow.transform(z)
    f, t = flow.f, torch.tensor([0.0, 1.0])
    for row, found in zip(z, log_det, strict=True):
        J = torch.autograd.functional.jacobian(
            lambda v: odeint(f, v.expand(1, 3), t, solver=TIGHT).y1[0], row
        )
        torch.testing.assert_close(found, J.logdet(), rtol=0, atol=1e-8)


def test_the_density_integrates_to_one():
    """The trapezoidal rule, which for a smooth density that vanishes at the edge is exact."""
    flow = CNF(Net(), 2, solver=Dopri5(rtol=1e-7, atol=1e-8))
    line = torch.linspace(-9, 9, 121, dtype=F64)
    with torch.no_grad():
        p = flow(torch.cartesian_prod(line, line)).exp()
    assert p.max() > 0.1
    assert p.sum().item() * (line[1] - line[0]).item() ** 2 == pytest.approx(1, abs=1e-6)


TRACES = {  # name: a trace, the same at every call
    "exact": lambda: ExactTrace(),
    "signs": lambda: Hutchinson(generator=torch.Generator().manual_seed(1)),
    "gaussian": lambda: Hutchinson(2, True, torch.Generator().manual_seed(1)),
}


@pytest.mark.parametrize("name", TRACES)
class TestTraces:
    def test_derivatives_against_finite_differences(self, name):
        """Fixed steps: a function as smooth as f. In x and the parameters, twice in x."""
        net, x = Net(width=3), normal(2, 2).requires_grad_()

        def log_prob(x, *parameters):
            return CNF(net, 2, trace=TRACES[name](), solver=RK4(step=0.5))(x)

        torch.autograd.gradcheck(log_prob, (x, *net.parameters()))
        torch.autograd.gradgradcheck(log_prob, (x,))

    @pytest.mark.parametrize("adjoint", [Checkpointed(2), Unrolled()])
    def test_adjoints_agree(self, name, adjoint):
        """Unrolled differentiates the steps as well, whose choice matters up to the tolerance."""
        net, x = Net(), normal(5, 2).requires_grad_()
        solver = Dopri8(rtol=1e-10) if adjoint == Unrolled() else RK4(step=0.25)
        grads = []
        for one in (Discrete(), adjoint):
            flow = CNF(net, 2, trace=TRACES[name](), solver=solver, adjoint=one)
            grads.append(torch.autograd.grad(flow(x).sum(), (x, *net.parameters())))
        torch.testing.assert_close(*grads, rtol=1e-7, atol=1e-8)

    @pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
    def test_without_recording_the_numbers_are_the_same(self, name, mode):
        net, x = Net(), normal(5, 2)
        recorded = CNF(net, 2, trace=TRACES[name]())(x)
        with mode():
            plain = CNF(net, 2, trace=TRACES[name]())(x.clone())
        assert recorded.requires_grad and not plain.requires_grad
        torch.testing.assert_close(recorded.detach(), plain.clone(), rtol=0, atol=1e-13)

    def test_float32(self, name):
        net, x = Net(), normal(5, 2)
        wide = CNF(net, 2, trace=TRACES[name]())
        narrow = CNF(copy.deepcopy(net).float(), 2, trace=wide.trace)
        if name != "exact":
            probes = wide.trace.probes(x)
            for flow in (wide, narrow):
                flow.trace = copy.copy(flow.trace)
                object.__setattr__(flow.trace, "probes", lambda y: probes.to(y.dtype))
        found = narrow(x.float())
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), wide(x), rtol=0, atol=1e-4)
        assert torch.autograd.grad(found.sum(), [*narrow.parameters()])[0].abs().max() > 0

    def test_a_field_without_a_derivative_in_y_keeps_volumes(self, name):
        w = torch.ones(2, dtype=F64, requires_grad=True)
        for f in (lambda t, y: torch.ones_like(y), lambda t, y: t * w, lambda t, y: t.expand(3, 2)):
            x, log_det = CNF(f, 2, trace=TRACES[name]()).transform(normal(3, 2))
            assert x.isfinite().all() and (log_det == 0).all()


class TestHutchinson:
    A = torch.tensor([[0.5, 0.9], [0.1, -0.2]], dtype=F64)
    S = (A + A.mT) / 2

    def estimates(self, count=4000, **options):
        """The integral of the estimated trace, over an interval of length 1: v'Av."""
        generator = torch.Generator().manual_seed(0)
        flow, _, _ = linear(self.A.tolist(), trace=Hutchinson(generator=generator, **options))
        return flow.transform(normal(count, 2))[1]

    @pytest.mark.parametrize("samples", [1, 4])
    @pytest.mark.parametrize("gaussian", [False, True])
    def test_mean_and_variance_are_as_stated(self, samples, gaussian):
        """Of 4000 estimates: five standard deviations of the mean, 20 per cent of the variance."""
        found = self.estimates(samples=samples, gaussian=gaussian)
        S = self.S if gaussian else self.S - self.S.diag().diag()
        variance = 2 * S.square().sum() / samples
        assert (found.mean() - self.A.trace()).abs() < 5 * (variance / 4000) ** 0.5
        assert abs(found.var() / variance - 1) < 0.2

    def test_v_is_one_throughout_a_solve(self):
        """Signs have v'Av = tr A + (A12 + A21) or tr A - (A12 + A21): nothing in between."""
        away = (self.estimates(50) - self.A.trace()).abs()
        torch.testing.assert_close(away, torch.ones_like(away), rtol=0, atol=1e-9)

    def test_a_diagonal_has_no_variance_under_signs(self):
        flow, E, _ = linear([[0.3, 0.0], [0.0, -1.0]], trace=Hutchinson())
        log_det = flow.transform(normal(9, 2))[1]
        torch.testing.assert_close(log_det, E.logdet().expand(9), rtol=0, atol=1e-9)

    def test_every_call_has_new_v_and_the_generator_decides(self):
        x, flows = normal(40, 2), []
        for seed in (1, 1, 2):
            trace = Hutchinson(generator=torch.Generator().manual_seed(seed))
            flows.append(linear(self.A.tolist(), trace=trace)[0])
        one, two, other = (flow(x) for flow in flows)
        assert one.equal(two) and not one.equal(other) and not one.equal(flows[0](x))

    def test_the_gradient_is_unbiased(self):
        """The mean over 1000 copies of a sample, against the exact trace."""
        net, x = Net(), normal(1, 2).expand(1000, 2)
        trace = Hutchinson(generator=torch.Generator().manual_seed(0))
        grads = [
            torch.autograd.grad(flow(x).mean(), [*net.parameters()])
            for flow in (CNF(net, 2, trace=t, solver=RK4(step=0.25)) for t in (None, trace))
        ]
        for exact, estimate in zip(*grads, strict=True):
            assert (exact - estimate).norm() < 0.1 * exact.norm()


@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (0,), (2, 0, 3)])
def test_batch_dimensions(shape):
    flow = CNF(Net(), 2)
    x = normal(*shape, 2)
    z, log_det = flow.inverse(x)
    assert flow(x).shape == log_det.shape == shape and z.shape == x.shape
    assert torch.equal(flow(x).flatten(), flow(x.reshape(-1, 2)))
    draws = flow.sample(shape)
    assert draws.shape == x.shape and draws.dtype == F64 and not draws.requires_grad
    assert flow.last.status.shape == (math.prod(shape),)


def test_draws_are_those_of_the_base_carried_along():
    flow = CNF(Net(), 2)
    torch.manual_seed(3)
    draws = flow.sample(4)
    torch.manual_seed(3)
    torch.testing.assert_close(draws, flow.transform(flow.base.sample((4,)))[0].detach())
    path = odeint(flow.f, flow.inverse(draws)[0], torch.tensor([0.0, 1.0])).y1
    torch.testing.assert_close(path, draws, rtol=0, atol=1e-5)


@pytest.mark.parametrize("on_failure", ["warn", "ignore", "nan"])
@pytest.mark.filterwarnings("ignore::diffopt.ConvergenceWarning")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_sample_does_not_touch_its_neighbours(value, on_failure):
    x = normal(6, 2)
    flow, bad = CNF(Net(), 2, on_failure=on_failure), x.clone()
    bad[3] = value
    good = torch.arange(6) != 3
    found = flow(bad)
    assert flow.last.status.tolist() == [0, 0, 0, 5, 0, 0]
    assert found[3].isnan() and torch.equal(found[good], flow(x)[good])


def test_a_sample_that_fails_on_the_way_does_not_touch_the_gradients_of_others():
    """y' = w y^2: x = -2 has no z."""
    w = torch.ones(1, dtype=F64, requires_grad=True)
    flow = CNF(lambda t, y: w * y.square(), 1, on_failure="ignore")
    x = torch.tensor([[0.5], [-2.0], [-0.5]], dtype=F64)
    (g,) = torch.autograd.grad(flow(x)[::2].sum(), w)
    (alone,) = torch.autograd.grad(flow(x[::2]).sum(), w)
    torch.testing.assert_close(g, alone)


def test_a_solution_that_ends_on_the_way():
    """y' = y^2 has z = x / (1 + x), and log|det dz/dx| = -2 log(1 + x); x <= -1 has no z."""
    x = torch.tensor([[0.5], [-2.0], [-0.5]], dtype=F64)
    flow = CNF(lambda t, y: y.square(), 1, on_failure="nan")
    z, log_det = flow.inverse(x)
    assert flow.last.status.tolist() == [0, 7, 0]
    truth = (x / (1 + x)).index_fill(0, torch.tensor(1), torch.nan)
    torch.testing.assert_close(z, truth, rtol=0, atol=1e-5, equal_nan=True)
    torch.testing.assert_close(log_det[::2], -2 * (1 + x[::2, 0]).log(), rtol=0, atol=1e-5)
    assert flow(x).isnan().tolist() == [False, True, False]
    flow.on_failure = "warn"
    with pytest.warns(ConvergenceWarning, match="sample 1: STEP_UNDERFLOW"):
        flow(x)
    flow.on_failure = "raise"
    with pytest.raises(ConvergenceError, match="1 of 3 samples failed"):
        flow(x)


def test_a_base_of_ones_own_is_learned_with_the_rest():
    loc = torch.zeros(2, dtype=F64, requires_grad=True)
    flow = CNF(lambda t, y: y, Independent(Normal(loc, 1.0), 1), solver=TIGHT)
    x = normal(7, 2)
    (g,) = torch.autograd.grad(flow(x).sum(), loc)  # log p = -|x / e - loc|^2 / 2 + ...
    torch.testing.assert_close(g, x.sum(0) / math.e, rtol=0, atol=1e-9)


def test_the_default_base_is_a_citizen_of_the_module():
    flow = CNF(Net().float(), 2)
    assert flow.sample(3).dtype == torch.float32 and flow.double().sample(3).dtype == F64
    assert flow.base.mean.dtype == F64 and flow.to("meta").origin.device.type == "meta"
    assert set(flow.state_dict()) == {f"f.{k}" for k in Net().state_dict()}


def test_nothing_is_recorded_where_nothing_asks_for_it():
    flow, x = CNF(Net().requires_grad_(False), 2), normal(3, 2)
    assert not flow(x).requires_grad and flow(x.requires_grad_()).requires_grad


def test_copies_and_the_record_of_the_last_call():
    flow, x = CNF(Net(), 2), normal(3, 2)
    log_p = flow(x)
    assert (flow.last.status == 0).all() and (flow.last.evaluations > 6).all()
    assert not any(v.requires_grad for v in flow.last.ys)
    other = copy.deepcopy(flow)
    assert other.last is None and torch.equal(other(x), log_p)


def test_it_learns():
    """Data of standard deviation 2: y' = w y with w = log 2, where the likelihood is best."""
    scale = nn.Linear(1, 1, bias=False, dtype=F64)
    flow, x = CNF(lambda t, y: scale(y), 1), 2 * normal(4000, 1)
    flow.solver = RK4(step=0.25)
    search = torch.optim.LBFGS(scale.parameters(), line_search_fn="strong_wolfe")

    def loss():
        search.zero_grad()
        value = -flow(x).mean()
        value.backward()
        return value

    search.step(loss)
    assert scale.weight.item() == pytest.approx(x.square().mean().sqrt().log().item(), abs=1e-3)


def test_a_number_and_a_shape_draw_alike():
    flow = CNF(Net(), 2)
    assert flow.sample().shape == (2,) and flow.sample(3).shape == (3, 2)
    assert flow.sample((2, 3)).shape == flow.sample(torch.Size([2, 3])).shape == (2, 3, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"base": 0}, "base=0: expected a torch.distributions.Distribution"),
        ({"base": True}, "base=True: expected"),
        ({"base": Normal(0.0, 1.0)}, r"with event shape \(d,\)"),
        ({"base": Exponential(torch.ones(2))}, "see Independent"),
        ({"t": (1.0, 1.0)}, r"t=\(1.0, 1.0\): expected two finite times"),
        ({"t": (0.0, 0.5, 1.0)}, "two finite times"),
        ({"t": (0.0, float("inf"))}, "two finite times"),
        ({"trace": "hutchinson"}, r"trace='hutchinson': expected ExactTrace\(\) or Hutchinson\(\)"),
        ({"on_failure": "shout"}, "on_failure='shout' is not one of"),
    ],
)
def test_wrong_settings_say_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        CNF(Net(), **{"base": 2, **arguments})


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(3, 3), r"x has shape \(3, 3\): expected \(\*B, 2\), as the base has 2 dim"),
        (torch.tensor(1.0), r"x has shape \(\)"),
        (torch.zeros(3, 2, dtype=torch.int64), "x is of torch.int64: expected a tensor"),
        ([0.0, 0.0], "x is a list: expected a tensor"),
    ],
)
def test_wrong_data_say_what_is_wrong(x, message):
    with pytest.raises(ValueError, match=message):
        CNF(Net(), 2)(x)


def test_a_wrong_field_says_what_is_wrong():
    with pytest.raises(ValueError, match=r"f\(t, y\) is \(3, 1\), but y has shape \(3, 2\)"):
        CNF(lambda t, y: y[:, :1], 2)(normal(3, 2))
    with pytest.raises(ValueError, match=r"f\(t, y\) is NoneType"):
        CNF(lambda t, y: None, 2)(normal(3, 2))
    with pytest.raises(ValueError, match="samples=0"):
        Hutchinson(0)
