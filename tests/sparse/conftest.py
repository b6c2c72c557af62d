"""Sparse tensors are checked when they are made, which torch asks to be told."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _checked():
    with torch.sparse.check_sparse_tensor_invariants(True):
        yield
