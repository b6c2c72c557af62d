"""The parts of the benchmarks of QPs against their definitions, and the smoke runs."""

import json
import re
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType

CPU = torch.device("cpu")


def test_a_call_is_timed_and_its_value_returned(script):
    watch = script("stopwatch").Stopwatch(CPU)
    value, seconds = watch.time(lambda: sum(range(1_000_000)))
    assert value == 499_999_500_000
    assert 1e-4 < seconds < 10


def test_events_enclose_the_call_on_a_gpu_that_is_idle_before_and_waited_for(script, monkeypatch):
    done = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            done.append("event")

        def elapsed_time(self, end):
            assert end is not self
            return 250.0  # milliseconds

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: done.append("wait"))
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    watch = script("stopwatch").Stopwatch(torch.device("cuda:0"))
    assert watch.time(lambda: done.append("call") or "value") == ("value", 0.25)
    assert done == ["wait", "event", "call", "event", "wait"]


@pytest.mark.parametrize("call, count", [
    (lambda x: None, 0),
    (lambda x: x + x, 1),
    (lambda x: (x + x) * x, 2),
    (lambda x: torch.linalg.cholesky_ex(torch.eye(3)), 2),
])  # fmt: skip
def test_operations_are_counted(script, call, count):
    x = torch.ones(3)
    assert script("launches").launches(lambda: call(x), CPU) == count


@pytest.mark.parametrize("name, kind, kernel", [
    ("void at::native::vectorized_elementwise_kernel<4>", DeviceType.CUDA, True),
    ("interior_point", DeviceType.CUDA, True),
    ("Memcpy HtoD (Pageable -> Device)", DeviceType.CUDA, False),
    ("Memset (Device)", DeviceType.CUDA, False),
    ("cuLaunchKernel", DeviceType.CPU, False),
])  # fmt: skip
def test_a_kernel_is_what_ran_on_the_device_and_is_no_copy(script, name, kind, kernel):
    event = SimpleNamespace(name=name, device_type=kind)
    assert script("launches").is_kernel(event) is kernel


KERNEL = SimpleNamespace(name="kernel", device_type=DeviceType.CUDA)


@pytest.mark.parametrize("seen, count", [([], None), ([KERNEL], 0), (3 * [KERNEL], 2)])
def test_a_profiler_that_sees_nothing_is_no_count_of_zero(script, monkeypatch, seen, count):
    module = script("launches")
    record = SimpleNamespace(events=lambda: seen)
    monkeypatch.setattr(module, "profile", lambda activities: nullcontext(record))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    assert module.kernels(lambda: None, CPU) == count


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_kernels_are_counted_and_timed_on_a_gpu(script):
    device = torch.device("cuda")
    x = torch.ones(1000, 1000, device=device)
    assert script("launches").launches(lambda: x + x, device) == 1
    assert script("launches").launches(lambda: x.cpu(), device) == 0
    _, seconds = script("stopwatch").Stopwatch(device).time(lambda: x @ x)
    assert 0 < seconds < 10


def test_flops_of_a_small_step_by_hand(script):
    """n = 3, m = 2, e = 1: factors 18 + 9 + 9 + 3 + 1/3, a solve 18 + 12 + 6 (3 + 4 + 2)."""
    assert script("arithmetic").flops(3, 2, 1) == pytest.approx(39 + 1 / 3 + 2 * 84)


def test_the_rate_is_that_of_a_product(script, monkeypatch):
    """10 rows, 2000 operations, in half a second at best; the first product is a warm-up."""
    arithmetic = script("arithmetic")
    took = iter([0.1, 2.0, 0.5, 3.0])
    monkeypatch.setattr(
        arithmetic, "Stopwatch", lambda _: SimpleNamespace(time=lambda call: (call(), next(took)))
    )
    assert arithmetic.matrix_rate(CPU, 10, rounds=3) == 4000


def test_a_problem_moves_with_leaves_of_its_own(script):
    a = script("judge").sudoku_layer(2, 6, 0, 2)
    there = a.to(torch.device("meta"))
    assert there.leaves().keys() == a.leaves().keys() == {"p", "A", "b"}
    assert all(v.is_meta and v.is_leaf for v in there.leaves().values())
    assert there.Q.is_meta and there.nonneg and there.G is None
    assert all(v.device == CPU for v in a.leaves().values())


def test_the_problem_of_the_paper_is_that_of_its_script(script):
    judge = script("judge")
    a = judge.optnet_problem(3, 8, 6, 0)
    assert a.G.shape == (3, 6, 8) and a.A is None
    assert (torch.linalg.eigvalsh(a.Q) >= 1e-3 - 1e-9).all()
    z = script("peers").ours("torch")(a)()
    x, _ = judge.exact(a, z.detach())
    torch.testing.assert_close(z, x, rtol=0, atol=1e-9)


@pytest.mark.parametrize("wrong", [0.1, float("nan")])
def test_the_judge_follows_the_first_answer_that_is_right(script, wrong):
    a = script("judge").random_problem(3, 5, 4, 1)
    right = script("peers").ours("torch")(a)
    race = script("race")
    assert race.judgement(a, [lambda: right() + wrong]) is None
    x, _ = race.judgement(a, [lambda: right() + wrong, right])
    torch.testing.assert_close(x, right().detach(), rtol=0, atol=1e-9)


def test_who_raises_is_left_out_with_the_reason_and_the_others_go_on(script, monkeypatch):
    def build(_):
        raise ValueError("no such thing here")

    race, a = script("race"), script("judge").random_problem(2, 4, 3, 1)
    monkeypatch.setitem(race.CONTENDERS, "broken", ("diffopt", build))
    found = race.contest(a, ["broken", "torch"], 0.01, also=lambda name, forward: {"also": name})
    assert found["broken"] == {"left out": "ValueError: no such thing here"}
    assert found["torch"]["also"] == "torch" and found["torch"]["z"] < 1e-9
    assert found["torch"]["forward"] > 0 and found["torch"]["no_grad"] > 0


RIGHT, WRONG, UNKNOWN = {"z": 1e-9}, {"z": 1e-3}, {}


@pytest.mark.parametrize("gpu, ms, z, qpth, said", [
    (True, 0.9, RIGHT, {"forward": 18.0}, "0.90 | 1 | met | 18.00 | 20.0 | 20 | met"),
    (True, 1.1, RIGHT, {"forward": 20.0}, "1.10 | 1 | missed | 20.00 | 18.2 | 20 | missed"),
    (True, 0.9, WRONG, {"forward": 18.0}, "0.90 | 1 | wrong | 18.00 | 20.0 | 20 | wrong"),
    (True, 0.9, UNKNOWN, {"forward": 18.0}, "0.90 | 1 | wrong | 18.00 | 20.0 | 20 | wrong"),
    (True, 0.9, RIGHT, {"left out": "why"}, "0.90 | 1 | met | - | - | 20 | -"),
    (False, 0.9, RIGHT, {"forward": 9.0}, "0.90 | 1 | - | 9.00 | 10.0 | 20 | -"),
])  # fmt: skip
def test_goals_are_judged_on_a_gpu_alone(script, gpu, ms, z, qpth, said):
    contenders = {"cuda": {"left out": "why"}, "torch": {"forward": ms, **z}, "qpth": qpth}
    rows = [{"name": "it", "goal": 1.0, "contenders": contenders},
            {"name": "no goal", "goal": None, "contenders": contenders}]  # fmt: skip
    lines = script("targets").targets({"device": "X", "shapes": rows}, ("cuda", "torch"), gpu)
    assert lines[-1] == f"| it | torch | {said} |"
    assert not any("no goal" in line for line in lines)


@pytest.mark.parametrize("name, only, title", [
    ("qp_gpu", "cuda,native,torch", "# QP layers on CPU tensors"),
    ("qp_cpu", "native,torch", "# QP layers on a CPU"),
])  # fmt: skip
def test_the_smoke_run_writes_table_numbers_and_picture(
    script, tmp_path, capsys, name, only, title
):
    arguments = ["--smoke", "--only", only, "--out", str(tmp_path)]
    script(name).main(arguments + (["--device", "cpu"] if name == "qp_gpu" else []))
    text, result = capsys.readouterr().out, json.loads((tmp_path / f"{name}.json").read_text())
    assert (tmp_path / f"{name}.md").read_text() + "\n" == text
    assert text.startswith(title)
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    for row in result["shapes"]:
        r = row["contenders"]["torch"]
        assert r["forward"] > 0 and r["backward"] > 0
        assert max(r["violation"], r["z"], r["gradient"]) < 1e-9
    if name == "qp_gpu":
        found = [row["contenders"]["torch"] for row in result["shapes"]]
        assert all(r["launches"] > 100 and 2 < r["steps"] < 20 for r in found)
        assert [0 < r.get("share", 0) < 1 for r in found] == [True, True, False, True]  # Sudoku
        assert re.search(r"\* cuda, everywhere: ValueError: ", text)
        assert text.count("OptNet's paper") == 2
