"""The oracles are the definition of the generator and counts with known expectations."""

import pytest
import torch

from problems.signals import differences, oracle, piecewise_constant

MANY = piecewise_constant(4000, seed=1)
CASES = {  # name: signals
    "defaults": MANY,
    "one piece": piecewise_constant(50, pieces=(1, 1)),
    "all samples jump": piecewise_constant(50, 12, pieces=(12, 12)),
    "no noise": piecewise_constant(50, 30, noise=0.0),
    "shortest": piecewise_constant(50, 2, pieces=(1, 2)),
}


@pytest.mark.parametrize("name", CASES)
def test_signals_are_constant_on_each_piece_and_pieces_are_counted_from_zero(name):
    clean, noisy, piece = CASES[name]
    assert clean.shape == noisy.shape == piece.shape and clean.dtype == noisy.dtype == torch.float64
    steps = piece.diff()
    assert (piece[:, 0] == 0).all() and ((steps == 0) | (steps == 1)).all()
    assert (clean.diff()[steps == 0] == 0).all()


@pytest.mark.parametrize("name", CASES)
def test_the_oracle_is_the_mean_of_each_piece(name):
    signals = CASES[name]
    found = oracle(signals)[:50]
    for row, noisy, piece in zip(found, signals.noisy, signals.piece, strict=False):
        for k in piece.unique():
            torch.testing.assert_close(
                row[piece == k], noisy[piece == k].mean().expand(sum(piece == k))
            )


def test_without_noise_everything_is_known():
    clean, noisy, _ = CASES["no noise"]
    assert noisy.equal(clean)
    torch.testing.assert_close(oracle(CASES["no noise"]), clean)


def test_defaults_have_1_to_9_pieces_heights_10_to_99_and_noise_10():
    """4000 signals: of means, the tolerances are five standard deviations."""
    clean, noisy, piece = MANY
    pieces = piece[:, -1] + 1
    assert pieces.unique().tolist() == list(range(1, 10))
    assert pieces.double().mean().item() == pytest.approx(5, abs=5 * (60 / 9 / 4000) ** 0.5)
    assert clean.unique().tolist() == list(range(10, 100))
    noise = noisy - clean
    assert noise.mean().item() == pytest.approx(0, abs=5 * 10 / 400_000**0.5)
    assert noise.std().item() == pytest.approx(10, rel=5 / 800_000**0.5)


def test_jumps_fall_everywhere_alike():
    """Each of the 99 places has a jump with probability 4/99: 162 of 4000, give or take 12.5."""
    counts = (MANY.piece.diff() == 1).sum(0)
    assert counts.min() > 162 - 5 * 12.5 and counts.max() < 162 + 5 * 12.5


def test_the_oracle_leaves_the_noise_of_five_means_in_a_hundred_samples():
    error = (oracle(MANY) - MANY.clean).square().mean().item()
    assert error == pytest.approx(5, abs=0.3)


def test_the_seed_decides():
    one, two, other = (piecewise_constant(3, seed=s) for s in (1, 1, 2))
    assert one.noisy.equal(two.noisy) and not one.noisy.equal(other.noisy)


def test_differences_are_those_of_neighbours():
    z = MANY.noisy[0]
    torch.testing.assert_close(differences(100) @ z, z[1:] - z[:-1], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 0}, "count is 0, n is 100: ask for 1 signal"),
        ({"count": 1, "n": 1}, "count is 1, n is 1: ask for 1 signal of 2 samples"),
        ({"count": 1, "pieces": (0, 3)}, r"pieces is \(0, 3\): choose 1 <= fewest"),
        ({"count": 1, "pieces": (4, 3)}, r"pieces is \(4, 3\): choose"),
        ({"count": 1, "n": 5, "pieces": (1, 6)}, r"most <= n = 5"),
        ({"count": 1, "heights": (9, 3)}, r"heights is \(9, 3\): the least comes first"),
        ({"count": 1, "noise": -1.0}, r"noise is -1.0: give a standard deviation >= 0"),
        ({"count": 1, "noise": float("nan")}, "noise is nan"),
    ],
)
def test_what_cannot_be_drawn_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        piecewise_constant(**arguments)
