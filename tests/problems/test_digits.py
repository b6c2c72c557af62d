"""The split of the digits: all images once, every digit in its share."""

import pytest
import torch

from problems import digits


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_the_split_has_every_image_once_and_every_digit_in_its_share(share):
    train, test = digits.split(share)
    whole = torch.cat([train.pixels, test.pixels]).flatten(1)
    assert whole.shape == (1797, 64)
    assert len(whole.unique(dim=0)) == 1797  # no two images are the same
    for digit in range(10):
        mine, theirs = ((part.digits == digit).sum() for part in (test, train))
        assert abs(mine - share * (mine + theirs)) <= 0.5


def test_pixels_are_the_counts_of_the_data_set():
    """Sixteenths from paper to ink, and 178, 182, 177, ... images of 0, 1, 2, ... (UCI)."""
    train, test = digits.split()
    for part in (train, test):
        assert part.pixels.dtype == torch.float32 and part.digits.dtype == torch.int64
        assert part.pixels.shape == (len(part.digits), 8, 8)
        assert part.pixels.min() == 0 and part.pixels.max() == 1
        assert torch.equal((16 * part.pixels).round(), 16 * part.pixels)
    counts = torch.cat([train.digits, test.digits]).bincount()
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_the_split_depends_on_the_seed_alone_and_is_in_random_order():
    one, two, other = (digits.split(seed=s)[1] for s in (1, 1, 2))
    assert torch.equal(one.pixels, two.pixels)
    assert not torch.equal(one.digits, other.digits)
    assert not torch.equal(one.digits, one.digits.sort().values)


@pytest.mark.parametrize("share", [0, 1, -0.2, float("nan")])
def test_a_share_outside_of_0_and_1_is_refused(share):
    with pytest.raises(ValueError, match="choose a share between 0 and 1"):
        digits.split(share)
