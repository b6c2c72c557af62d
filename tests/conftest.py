import pytest
import torch

torch.set_num_threads(1)  # of problems this small, threads only wait for each other


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)
