"""Nothing that `solve_qp` accepts makes the compiled core crash, write to it, or answer wrongly."""

import ctypes
import mmap
import threading

import pytest
import torch

from diffopt import solve_qp
from problems.random_qp import random_lp, random_qp, rescaled

from .agreement import NATIVE, OUTPUTS, TORCH, agree, close, given, needs_core, same_bits, solved

pytestmark = needs_core


def draw(seed: int):
    """A random instance of any kind: sizes, blocks, batch and what is shared."""
    g = torch.Generator().manual_seed(seed)

    def below(k: int) -> int:
        return int(torch.randint(k, (), generator=g))

    n = 1 + below(12)
    m, e, batch = below(2 * n), below(n // 2 + 1), [(), (1,), (5,), (2, 4), (17,)][below(5)]
    bounds = bool(below(2)) or m + e == 0
    shared = tuple(k for k in ("Q", "G", "A") if below(2))
    if below(5) == 0 and m >= n:
        return random_lp(n, m, e, batch=batch, bounds=bounds, seed=seed)
    return random_qp(
        n, m, e, batch=batch, bounds=bounds, shared=shared, diagonal=bool(below(2)),
        two_sided=bool(below(2)), condition=10.0 ** below(5), seed=seed,
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(20))
def test_random_problems(seed):
    instance = draw(seed)
    sol = agree(given(instance), OUTPUTS)
    assert (sol.status == 0).all()
    agree(given(rescaled(instance, 1e3, 1e-3)), OUTPUTS)


@pytest.mark.parametrize("batch", [*range(1, 18)])
@pytest.mark.parametrize("kind", ["own", "shared", "diagonal"])
def test_batches_around_the_width_of_the_lanes(batch, kind):
    if kind == "diagonal":
        instance = random_qp(5, 0, 2, bounds=True, diagonal=True, batch=(batch,), seed=batch)
    else:
        shared = ("Q", "G", "A") if kind == "shared" else ()
        instance = random_qp(5, 6, 2, two_sided=True, shared=shared, batch=(batch,), seed=batch)
    agree(given(instance), OUTPUTS)


def ones(*shape):
    return torch.ones(shape, dtype=torch.float64)


def overdetermined():
    """e > n: more equations than unknowns, all of which hold."""
    A, z = torch.randn(9, 7, 3, generator=torch.Generator().manual_seed(0)).double(), ones(3)
    return {"Q": torch.eye(3).double(), "p": ones(9, 3), "A": A, "b": A @ z}


SHAPES = {
    "one unknown, nothing else": {"Q": ones(1, 1), "p": ones(9, 1)},
    "one unknown, one bound": {"Q": None, "p": ones(9, 1), "lb": -1.0},
    "no unknown is free": {"Q": ones(1, 1), "p": ones(9, 2)[..., :1], "lb": 0.5, "ub": 0.5},
    "no rows": {
        "Q": torch.eye(3).double(), "p": ones(9, 3), "G": ones(0, 3), "h": ones(0),
        "A": ones(9, 0, 3), "b": ones(9, 0),
    },
    "rows of zeros": {
        "Q": torch.eye(3).double(), "p": ones(9, 3), "G": 0 * ones(2, 3), "h": ones(2),
        "A": 0 * ones(1, 3), "b": 0 * ones(1),
    },
    "as many equations as unknowns": given(random_qp(4, 0, 4, batch=(9,))),
    "more equations than unknowns": overdetermined(),
    "more equations than unknowns, which contradict": overdetermined() | {"b": 3.0},
    "no limit is finite": {
        "Q": torch.eye(3).double(), "p": ones(9, 3), "G": ones(2, 3), "h": float("inf"),
        "lb": -float("inf"), "ub": float("inf"),
    },
    "three batch dimensions": given(random_qp(3, 4, 1, batch=(2, 1, 5))),
    "each argument broadcast on its own": {
        "Q": torch.eye(3).double().expand(4, 1, 3, 3), "p": ones(5, 3), "G": ones(1, 1, 2, 3),
        "h": -ones(4, 1, 1).expand(4, 1, 2), "lb": -ones(3), "ub": 2.0,
    },
    "an empty batch": {"Q": torch.eye(3).double(), "p": ones(0, 3), "lb": ones(0, 3)},
    "a batch without samples in front": {"Q": torch.eye(3).double(), "p": ones(0, 4, 3), "ub": 0.0},
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name):
    agree(SHAPES[name])


def overlapping(v):
    """The rows of a batch as windows, one entry further each, on one piece of memory."""
    shape, size = v.shape[1:], v[0].numel()
    strides = torch.empty(shape).stride()
    base = v.flatten()[: size + len(v) - 1].clone()
    return base.as_strided(v.shape, (1, *strides))


def stepped(v):
    room = torch.full([2 * s + 1 for s in v.shape], float("nan"), dtype=v.dtype)
    return room[tuple(slice(1, None, 2) for _ in v.shape)].copy_(v)


LAYOUTS = {
    "transposed": lambda v: v.mT.contiguous().mT if v.ndim > 2 else v.T.contiguous().T,
    "every second entry of every dimension": stepped,
    "batch last": lambda v: v.movedim(0, -1).contiguous().movedim(-1, 0),
    "flipped": lambda v: v.flip(0).contiguous().flip(0),
    "expanded over the batch": lambda v: v[:1].expand(v.shape),
    "expanded and sliced": lambda v: v[:1].expand(len(v) + 3, *v.shape[1:])[3:],
    "at an odd address": lambda v: torch.cat([v.new_zeros(1), v.flatten()])[1:].view(v.shape),
    "negative view": lambda v: torch._neg_view(-v),
    "imaginary part of a conjugate": lambda v: torch.complex(0 * v, -v).conj().imag,
    "parameter": lambda v: torch.nn.Parameter(v),
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("n", [1, 5])
def test_strides(name, n):
    a = given(random_qp(n, n, n // 3, two_sided=True, bounds=True, batch=(9,), seed=2))
    a = {k: v.nan_to_num(posinf=9.0, neginf=-9.0) for k, v in a.items()}
    laid = {k: LAYOUTS[name](v) for k, v in a.items()}
    if not name.startswith("expanded"):
        assert all(torch.equal(laid[k], v) for k, v in a.items())
    agree(laid)


def test_windows_on_one_piece_of_memory():
    a = given(random_qp(4, 5, batch=(9,), seed=3))
    p, h = overlapping(a["p"]), overlapping(a["h"].abs())
    agree({"Q": torch.eye(4).double(), "p": p, "G": overlapping(a["G"]), "h": h})


def test_arguments_that_share_memory_with_each_other():
    x = torch.randn(9, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    Q = x @ x.mT
    sol = agree({"Q": Q, "p": Q[:, 1], "G": Q, "h": Q.diagonal(0, 1, 2), "A": Q[:, 3:], "b": 0.0,
                 "h_lower": -Q.diagonal(0, 1, 2)})  # fmt: skip
    assert (sol.status == 0).all()


DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.uint8]


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype):
    p = torch.arange(-10, 17).view(9, 3).to(dtype)
    G, b = torch.tensor([[1, 0, 2], [0, 1, 1]]).to(dtype), torch.tensor([3], dtype=dtype)
    a = {"Q": 2 * torch.eye(3).to(dtype), "p": p, "G": G, "h": 2, "A": G[:1], "b": b, "lb": -8}
    rtol = 1e-8 if not dtype.is_floating_point else torch.finfo(dtype).eps
    agree(a, rtol=rtol, grad_rtol=100 * rtol)
    mixed = a | {"p": p.double(), "G": G.float()}
    assert agree(mixed).z.dtype == torch.float64


def spoiled(name: str, value: float):
    """Nine problems; of the fourth one entry of argument `name` is `value`, of the sixth all."""
    a = given(random_qp(5, 6, 2, two_sided=True, bounds=True, batch=(9,), seed=4))
    bad = a | {name: a[name].clone()}
    bad[name][3].view(-1)[1], bad[name][5] = value, value
    return a, bad


OTHERS = torch.tensor([0, 1, 2, 4, 6, 7, 8])
HOSTILE = (float("nan"), float("inf"), -float("inf"), 5e-324, 1e308)


@pytest.mark.parametrize("name", ["Q", "p", "G", "h", "A", "b", "lb", "ub", "h_lower"])
@pytest.mark.parametrize("value", HOSTILE)
def test_hostile_numbers(name, value):
    clean, bad = spoiled(name, value)
    expected = solved(clean, NATIVE)[0]
    before = {k: v.clone() for k, v in bad.items()}
    sol, grads = solved(bad, NATIVE)
    assert all(same_bits(bad[k], v) for k, v in before.items())
    assert (sol.status[OTHERS] == 0).all() and sol.z[sol.status == 0].isfinite().all()
    assert all(g[OTHERS].isfinite().all() for g in grads.values())
    assert torch.equal(sol.z[OTHERS], expected.z[OTHERS])
    if value != 1e308:  # there, what counts as a solution is a matter of rounding
        assert torch.equal(sol.status, solved(bad, TORCH)[0].status)


class Protected:
    """A copy of a tensor that ends where memory ends, none of which can be written to."""

    def __init__(self, v):
        size, page = v.numel() * 8, mmap.PAGESIZE
        self.held = -(-size // page) * page
        self.map = mmap.mmap(-1, self.held + page)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.map))
        whole = torch.frombuffer(self.map, dtype=torch.float64)
        self.tensor = whole[(self.held - size) // 8 : self.held // 8].view(v.shape).copy_(v)
        self.protect(mmap.PROT_READ, 0)

    def protect(self, data: int, behind: int):
        libc = ctypes.CDLL(None, use_errno=True)
        start = ctypes.c_void_p(self.address)
        assert libc.mprotect(start, ctypes.c_size_t(self.held), data) == 0
        end = ctypes.c_void_p(self.address + self.held)
        assert libc.mprotect(end, ctypes.c_size_t(mmap.PAGESIZE), behind) == 0


@pytest.mark.skipif(not hasattr(mmap, "PROT_READ"), reason="no page protection")
@pytest.mark.parametrize("batch", [1, 9])
@pytest.mark.parametrize("shared", [(), ("Q", "G", "A")])
def test_nothing_is_written_to_or_read_behind(batch, shared):
    a = given(random_qp(5, 7, 2, two_sided=True, bounds=True, batch=(batch,), shared=shared))
    held = {k: Protected(v) for k, v in a.items()}
    try:
        agree({k: v.tensor for k, v in held.items()}, OUTPUTS)
    finally:
        for v in held.values():
            v.protect(mmap.PROT_READ | mmap.PROT_WRITE, mmap.PROT_READ | mmap.PROT_WRITE)


def test_the_default_device_is_not_that_of_the_answer():
    a = given(random_qp(4, 5, 1, bounds=True, batch=(9,)))
    expected, grads = solved(a, NATIVE)
    p = a["p"].clone().requires_grad_()
    with torch.device("meta"):
        sol = solve_qp(**a | {"p": p}, solver=NATIVE)
        fallback = solve_qp(**a, solver=NATIVE, infeasible="closest")
        weight = torch.ones(sol.z.shape, device="cpu", dtype=sol.z.dtype)
        sol.z.backward(weight)
    assert torch.equal(sol.z, expected.z) and p.grad.device.type == "cpu"
    assert sol.status.device.type == fallback.z.device.type == "cpu"


def test_the_default_dtype_does_not_matter():
    a = given(random_qp(4, 5, 1, bounds=True, batch=(9,)))
    expected, grads = solved(a, NATIVE)
    torch.set_default_dtype(torch.float16)
    try:
        sol, again = solved(a, NATIVE)
    finally:
        torch.set_default_dtype(torch.float32)
    assert same_bits(sol.z, expected.z) and same_bits(again["Q"], grads["Q"])


def moved_by(v, entries):
    """A copy of `v` that begins `entries` after an address that is a multiple of 64."""
    room = torch.empty(v.numel() * v.element_size() + 128, dtype=torch.uint8)
    begin = -room.data_ptr() % 64 + 8 * entries
    copy = room[begin : begin + v.numel() * v.element_size()].view(v.dtype)
    return copy.view(v.shape).copy_(v)


@pytest.mark.parametrize("entries", [0, 1, 2, 5])
@pytest.mark.parametrize("batch", [1, 20])
def test_saved_tensors_may_come_back_at_another_address(entries, batch):
    a = given(random_qp(6, 8, 2, bounds=True, batch=(batch,)))
    truth = solved(a, NATIVE, OUTPUTS)[1]
    hooks = torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda v: moved_by(v, entries))
    with hooks:
        grads = solved(a, NATIVE, OUTPUTS)[1]
    assert all(same_bits(grads[k], v) for k, v in truth.items())


COTANGENTS = {
    "expanded": lambda z: z.sum(),
    "transposed": lambda z: (z.T.contiguous().view(-1) * torch.arange(z.numel())).sum(),
    "negative view": lambda z: torch.complex(z, z).conj().imag.square().sum(),
    "one sample": lambda z: z[3].square().sum(),
    "half precision": lambda z: z.half().square().sum(),
}


@pytest.mark.parametrize("name", COTANGENTS)
def test_cotangents(name):
    a = given(random_qp(5, 6, 2, bounds=True, batch=(9,)))
    grads = []
    for solver in (NATIVE, TORCH):
        leaves = {k: v.clone().requires_grad_() for k, v in a.items()}
        loss = COTANGENTS[name](solve_qp(**leaves, solver=solver).z)
        grads.append(torch.autograd.grad(loss, list(leaves.values())))
    for value, truth in zip(*grads, strict=True):
        close(value, truth, 1e-9)


def test_data_may_change_before_the_backward_pass():
    a = given(random_qp(6, 8, 2, bounds=True, batch=(9,)))
    p = a["p"].requires_grad_()
    truth = torch.autograd.grad(solve_qp(**a, solver=NATIVE).z.sum(), p)[0]
    sol = solve_qp(**a, solver=NATIVE)
    for name in ("Q", "G", "A", "h"):
        a[name].fill_(float("nan"))
    assert same_bits(torch.autograd.grad(sol.z.sum(), p)[0], truth)


def test_threads_of_python_do_not_meet():
    problems = [given(random_qp(8, 10, 2, batch=(20,), seed=i)) for i in range(4)]
    truth = [solved(a, NATIVE, OUTPUTS) for a in problems]
    found = [None] * len(problems)

    def work(i):
        for _ in range(5):
            found[i] = solved(problems[i], NATIVE, OUTPUTS)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(problems))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for (sol, grads), (true_sol, true_grads) in zip(found, truth, strict=True):
        assert same_bits(sol.z, true_sol.z)
        assert all(same_bits(grads[k], v) for k, v in true_grads.items())


LARGE = {
    "1e5 problems of two unknowns": lambda: random_qp(2, 1, bounds=True, batch=(100_000,)),
    "1e5 box problems, one diagonal Q": lambda: random_qp(
        3, bounds=True, diagonal=True, shared=("Q",), batch=(100_000,)
    ),
    "20000 problems of ten unknowns": lambda: random_qp(10, 5, 1, batch=(20_000,)),
    "a million entries in Q": lambda: random_qp(1000, 100, 10, bounds=True),
}


@pytest.mark.parametrize("name", LARGE)
def test_large_problems(name):
    instance = LARGE[name]()
    sol, grads = solved(given(instance), NATIVE)
    assert (sol.status == 0).all() and all(g.isfinite().all() for g in grads.values())
    close(sol.z, instance.z, 1e-8)
    if sol.z.ndim > 1:
        last = {
            k: v[-50:] if v.ndim > 2 or k not in "QGA" else v for k, v in given(instance).items()
        }
        close(sol.z[-50:], agree(last).z, 1e-10)
