"""Noise scales and levels, read from a model's own functions."""

import pytest
from families import CORE

from latent_directions.nodes.errors import InputError, UnsupportedModelError
from latent_directions.nodes.sampling import level_at_sigma, linear_scale, sigma_at_level

SCALES = {"eps": lambda sigma: (1.0, sigma), "flow": lambda sigma: (1.0 - sigma, sigma)}


class TestScale:
    @pytest.mark.parametrize("kind", SCALES)
    def test_is_read_from_the_model(self, kind):
        def noise_scaling(sigma, noise, latent):
            a, b = SCALES[kind](sigma)
            return a * latent + b * noise

        assert linear_scale(noise_scaling, 0.3) == pytest.approx(SCALES[kind](0.3))

    def test_a_model_that_scales_in_place(self):
        assert linear_scale(lambda s, n, x: n.mul_(s).add_(x), 0.5) == pytest.approx((1.0, 0.5))

    @pytest.mark.parametrize(
        "other", [lambda s, n, x: x + s * n + 0.1, lambda s, n, x: x + s * n * x, lambda s, n, x: (x + s * n) ** 2]
    )
    def test_other_forms_are_refused(self, other):
        with pytest.raises(UnsupportedModelError, match="does not noise a picture as 'picture \\+ noise'"):
            linear_scale(other, 0.5)

    @pytest.mark.parametrize(("sigma", "left"), [(1.0, "nothing of the picture"), (0.0, "no noise")])
    def test_nothing_left(self, sigma, left):
        with pytest.raises(UnsupportedModelError, match=left):
            linear_scale(lambda s, n, x: (1 - s) * x + s * n, sigma)


class TestLevel:
    def test_share_of_the_schedule_and_its_bounds(self):
        def percent_to_sigma(percent):
            return 10 * (1 - percent)

        assert sigma_at_level(percent_to_sigma, 0.7, 0.5, 9.0) == pytest.approx(7)
        assert sigma_at_level(percent_to_sigma, 1.0, 0.5, 9.0) == 9.0
        assert sigma_at_level(percent_to_sigma, 0.01, 0.5, 9.0) == 0.5

    @pytest.mark.parametrize("family", CORE, ids=str)
    def test_of_a_sigma(self, family):
        percent_to_sigma = family.build().model.get_model_object("model_sampling").percent_to_sigma
        for level in (0.001, 0.12, 0.4567, 0.5, 0.6, 0.999):
            assert level_at_sigma(percent_to_sigma, percent_to_sigma(1 - level)) == pytest.approx(level, abs=3e-6)
        assert level_at_sigma(percent_to_sigma, percent_to_sigma(0.0)) == pytest.approx(1, abs=1e-5)

    @pytest.mark.parametrize("level", [0.0, -1.0, 1.0001, float("nan"), float("inf")])
    def test_outside(self, level):
        with pytest.raises(InputError, match="outside the schedule"):
            sigma_at_level(lambda p: 1 - p, level, 0.0, 1.0)
