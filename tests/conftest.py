"""Settings and fixtures of all tests."""

import pytest
import torch

torch.set_num_threads(1)  # the number of threads changes rounding


@pytest.fixture(params=["public_code", "paper"])
def protocol(request: pytest.FixtureRequest) -> str:
    """The override that chooses the switches of all strategies, for each option of ``conf/protocol``."""
    return f"protocol@strategy={request.param}"
