import pytest
from analytic import SCALES, analytic, box


@pytest.fixture(params=SCALES)
def model(request):
    """The analytic model at every noise scale."""
    return analytic(request.param)


@pytest.fixture(params=["everywhere", "box"])
def mask(request):
    """No mask, and one over half of the latent."""
    return None if request.param == "everywhere" else box()
