"""The anchored prediction: its algebra, the exact return, what each move adds, what is snapped, kept and cached."""

import pytest
import torch
from analytic import SHAPE, analytic, box, sample_euler, sample_heun

from latent_directions.core.anchor import (
    AnchoredPrediction,
    NoiseMove,
    NoisePaths,
    ReferenceCache,
    WordsMove,
    levels_of_steps,
    moved_noise,
    snap_to_reference,
    union_of_masks,
)
from latent_directions.core.errors import NoiseLevelsError, NotFiniteError, ShapeError
from latent_directions.core.inversion import seeded_noise

KEEP = ("keep 0 present", "keep 0 absent")


def random(*shape: int, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def pair_of_pictures(model) -> torch.Tensor:
    """A batch of two."""
    return torch.cat([model.x0, model.x0 + 0.3 * random(*SHAPE, seed=9)])


class Predictions:
    """The model's predictions by prompt; every call is recorded."""

    def __init__(self, model, guidance: float = 1.0):
        self.denoiser, self.guidance = model.denoiser, guidance
        self.calls: list[list[str]] = []

    def __call__(self, x, sigma, names):
        self.calls.append(list(names))
        return [self.denoiser(x, sigma, name, self.guidance) for name in names]


def anchored(model, x0, noise, *moves, **options) -> AnchoredPrediction:
    paths = options.pop("paths", None) or NoisePaths(noise)
    return AnchoredPrediction(x0, paths, model.denoiser.noised, moves, **options)


def off(change: torch.Tensor, kept: list[torch.Tensor]) -> torch.Tensor:
    """The part of a change that is orthogonal to what is kept, sample by sample, by least squares."""
    left = []
    for sample in range(len(change)):
        span = torch.stack([k[sample].flatten() for k in kept], dim=1)
        flat = change[sample].flatten()[:, None]
        left.append((flat - span @ torch.linalg.lstsq(span, flat).solution).view_as(change[sample]))
    return torch.stack(left)


class TestReturn:
    @pytest.mark.parametrize("share", [0.05, 0.4, 1.0])
    @pytest.mark.parametrize("keep", [(), (KEEP,)])
    def test_on_the_reference_path_it_is_the_picture(self, model, share, keep):
        """To the last bit, whatever the weight and whatever is kept."""
        x0, sigma = pair_of_pictures(model), share * model.sigma
        noise = seeded_noise(x0, 3)
        predictions = Predictions(model, guidance=4.0)
        for weight in (1.0, 0.7):
            anchor = anchored(model, x0, noise, WordsMove(strength=0.0, keep=keep, towards="target"), weight=weight)
            assert torch.equal(anchor(anchor.reference(sigma), sigma, predictions), x0)
        anchor = anchored(model, x0, noise, NoiseMove(strength=1.0, keep=keep, displacement=x0[0]))
        assert torch.equal(anchor(anchor.reference(sigma), sigma, predictions), x0)
        assert not predictions.calls

    def test_predictions_that_differ_from_call_to_call_do_not_disturb_it(self, model):
        """As they do where a batch is split, or in half precision: a sample on the path has no response at all."""
        x0, sigma = pair_of_pictures(model), model.sigma

        def unsteady(x, sigma, names, calls=[]):  # noqa: B006
            calls.append(1)
            return [model.denoiser(x, sigma, name) + 0.01 * len(calls) for name in names]

        anchor = anchored(model, x0, seeded_noise(x0, 3))
        x = anchor.reference(sigma)
        x[1] += 0.1
        found = anchor(x, sigma, unsteady)
        assert torch.equal(found[0], x0[0])
        assert not torch.equal(found[1], x0[1])

    @pytest.mark.parametrize("sampler", [sample_euler, sample_heun])
    @pytest.mark.parametrize("steps", [1, 2, 7])
    def test_sampling_returns_exactly(self, model, sampler, steps):
        """From x* under any guidance the anchored prediction ends at x0; the plain one does not."""
        noise = model.denoiser.noise_of(model.x, model.x0, model.sigma)
        sigmas = torch.linspace(model.sigma, 0, steps + 1, dtype=torch.float64).tolist()
        predictions = Predictions(model, guidance=4.0)
        anchor = anchored(model, model.x0, noise)

        def plain(x, sigma):
            return model.denoiser(x, sigma, "source", 4.0)

        back = sampler(model.denoiser.scale, model.x, sigmas, lambda x, sigma: anchor(x, sigma, predictions))
        assert torch.allclose(back, model.x0, atol=1e-12)
        assert not torch.allclose(sampler(model.denoiser.scale, model.x, sigmas, plain), model.x0, atol=1e-2)

    def test_moves_of_strength_zero_move_nothing(self, model):
        noise = seeded_noise(model.x0, 3)
        moves = (
            NoiseMove(strength=0.0, displacement=random(*SHAPE[1:])),
            WordsMove(strength=0.0, towards="target"),
            WordsMove(strength=0.0, towards="target", recorded=True),
        )
        start = model.denoiser.noised(model.x0, moved_noise(noise, moves, model.b), model.sigma)
        predictions = Predictions(model)
        assert torch.equal(anchored(model, model.x0, noise, *moves)(start, model.sigma, predictions), model.x0)
        assert not predictions.calls


class TestResponse:
    """The change of the prediction beside the path, by moves of the noise and by the sampler's own prompt."""

    def parts(self, model):
        x0 = pair_of_pictures(model)
        noise = seeded_noise(x0, 3)
        x_ref = model.denoiser.noised(x0, noise, model.sigma)
        return x0, noise, x_ref, x_ref + 0.2 * random(*x0.shape, seed=4)

    @pytest.mark.parametrize("weight", [0.0, 0.5, 1.0, 1.5])
    def test_weight(self, model, weight):
        x0, noise, x_ref, x = self.parts(model)
        found = anchored(model, x0, noise, weight=weight, prompt="target")(x, model.sigma, Predictions(model))
        change = model.denoiser(x, model.sigma, "target") - model.denoiser(x_ref, model.sigma)
        assert torch.allclose(found, x0 + weight * change, atol=1e-12)

    def test_what_is_kept_gets_no_part_of_the_change(self, model):
        """The keeps of all moves of the noise; for each sample of the batch what is kept at its own reference point."""
        x0, noise, x_ref, x = self.parts(model)
        other = ("free", "negative")
        moves = (
            NoiseMove(strength=1.0, keep=(KEEP,), displacement=random(*SHAPE[1:])),
            NoiseMove(strength=1.0, keep=(other, KEEP), displacement=random(*SHAPE[1:])),
            NoiseMove(strength=0.0, keep=(("nor", "this"),), displacement=random(*SHAPE[1:])),
        )
        found = anchored(model, x0, noise, *moves, prompt="target")(x, model.sigma, Predictions(model))
        change = model.denoiser(x, model.sigma, "target") - model.denoiser(x_ref, model.sigma)
        kept = [model.denoiser(x_ref, model.sigma, p) - model.denoiser(x_ref, model.sigma, q) for p, q in (KEEP, other)]
        assert torch.allclose(found - x0, off(change, kept), atol=1e-10)
        for direction in kept:
            assert ((found - x0) * direction).flatten(1).sum(1).abs().max() < 1e-10

    def test_the_change_is_let_through_where_any_move_acts(self, model):
        x0, noise, x_ref, x = self.parts(model)
        left, right = torch.zeros(1, 1, 3, 4), torch.zeros(1, 1, 3, 4)
        left[..., :2], right[..., 1:3] = 1.0, 0.5
        moves = (
            NoiseMove(strength=1.0, mask=left, displacement=random(*SHAPE[1:])),
            WordsMove(strength=1.0, mask=right, towards="source"),  # whose own difference is 0
            WordsMove(strength=0.0, towards="target"),  # moves nothing, and acts nowhere
        )
        found = anchored(model, x0, noise, *moves)(x, model.sigma, Predictions(model))
        change = model.denoiser(x, model.sigma) - model.denoiser(x_ref, model.sigma)
        weights = torch.tensor([1.0, 1.0, 0.5, 0.0], dtype=torch.float64)
        assert torch.allclose(found, x0 + weights * change, atol=1e-12)
        everywhere = (*moves, NoiseMove(strength=1.0, displacement=random(*SHAPE[1:])))
        found = anchored(model, x0, noise, *everywhere)(x, model.sigma, Predictions(model))
        assert torch.allclose(found, x0 + change, atol=1e-12)  # one without a mask acts everywhere
        # and so does a prompt of the sampler's own
        found = anchored(model, x0, noise, *moves, prompt="target")(x, model.sigma, Predictions(model))
        change = model.denoiser(x, model.sigma, "target") - model.denoiser(x_ref, model.sigma)
        assert torch.allclose(found, x0 + change, atol=1e-12)

    def test_each_sample_of_a_batch_for_itself(self, model):
        x0, noise, _, x = self.parts(model)
        moves = (
            NoiseMove(strength=1.0, keep=(KEEP,), mask=box(), displacement=random(*SHAPE[1:])),
            WordsMove(strength=0.8, keep=(KEEP,), mask=box(), towards="target"),
            WordsMove(strength=0.8, keep=(KEEP,), towards="free", recorded=True),
        )
        whole = anchored(model, x0, noise, *moves)(x, model.sigma, Predictions(model))
        for i in (0, 1):
            one = slice(i, i + 1)
            alone = anchored(model, x0[one], noise[one], *moves)
            assert torch.allclose(whole[one], alone(x[one], model.sigma, Predictions(model)), atol=1e-12)


class TestWords:
    """They add differences of two prompts, at the sampled point or on the reference path."""

    @pytest.fixture
    def point(self, model):
        x0 = pair_of_pictures(model)
        noise = seeded_noise(x0, 3)
        return x0, noise, model.denoiser.noised(x0, noise, model.sigma) + 0.2 * random(*x0.shape, seed=4)

    def difference(self, model, x, towards, away="source"):
        return model.denoiser(x, model.sigma, towards) - model.denoiser(x, model.sigma, away)

    @pytest.mark.parametrize("strength", [1.0, -0.6, 2.5])
    def test_closed_formula(self, model, point, strength):
        x0, noise, x = point
        x_ref = model.denoiser.noised(x0, noise, model.sigma)
        move = WordsMove(strength=strength, towards="target", away="free", keep=(KEEP,), mask=box())
        found = anchored(model, x0, noise, move, weight=0.8)(x, model.sigma, Predictions(model))
        carried = model.denoiser(x, model.sigma) - model.denoiser(x_ref, model.sigma)
        kept = self.difference(model, x_ref, *KEEP)
        added = strength * off(self.difference(model, x, "target", "free"), [kept])
        # outside the mask nothing is let through; the keep is that of the words alone
        assert torch.allclose(found, x0 + 0.8 * box() * (carried + added), atol=1e-10)

    def test_recorded_words_are_those_of_the_reference_path(self, model, point):
        x0, noise, x = point
        x_ref = model.denoiser.noised(x0, noise, model.sigma)
        moves = [
            WordsMove(strength=s, towards="target", keep=(KEEP,), recorded=recorded)
            for s, recorded in ((0.7, True), (-0.4, False))
        ]
        found = anchored(model, x0, noise, *moves)(x, model.sigma, Predictions(model))
        kept = self.difference(model, x_ref, *KEEP)
        on_path, beside = (off(self.difference(model, at, "target"), [kept]) for at in (x_ref, x))
        response = model.denoiser(x, model.sigma) - model.denoiser(x_ref, model.sigma)
        assert torch.allclose(found, x0 + response + 0.7 * on_path - 0.4 * beside, atol=1e-10)

    @pytest.mark.parametrize("recorded", [False, True])
    def test_the_same_words_twice_are_their_sum(self, model, point, recorded):
        x0, noise, x = point

        def found(*strengths):
            moves = [
                WordsMove(strength=s, towards="target", keep=(KEEP,), mask=box(), recorded=recorded) for s in strengths
            ]
            return anchored(model, x0, noise, *moves)(x, model.sigma, Predictions(model))

        assert torch.allclose(found(0.5, 0.8), found(1.3), atol=1e-12)

    def test_on_the_reference_path_only_the_difference_is_added(self, model, point):
        x0, noise, _ = point
        anchor = anchored(model, x0, noise, WordsMove(strength=0.5, towards="target"))
        x_ref = anchor.reference(model.sigma)
        found = anchor(x_ref, model.sigma, Predictions(model))
        assert torch.allclose(found, x0 + 0.5 * self.difference(model, x_ref, "target"), atol=1e-12)

    def test_several_add_up_each_with_its_own_keep_and_mask(self, model, point):
        x0, noise, x = point
        moves = (
            WordsMove(strength=1.5, towards="target", keep=(KEEP,)),
            WordsMove(strength=-0.7, towards="free", mask=box()),
            WordsMove(strength=0.4, towards="negative", away="target"),
            NoiseMove(strength=1.0, mask=1 - box(), displacement=random(*SHAPE[1:])),
        )
        anchor = anchored(model, x0, noise, *moves, prompt="keep 0 absent")
        x_ref = anchor.reference(model.sigma)
        expected = model.denoiser(x, model.sigma, "keep 0 absent") - model.denoiser(x_ref, model.sigma)
        expected = expected + 1.5 * off(self.difference(model, x, "target"), [self.difference(model, x_ref, *KEEP)])
        expected = expected - 0.7 * box() * self.difference(model, x, "free")
        expected = expected + 0.4 * self.difference(model, x, "negative", "target")
        assert torch.allclose(anchor(x, model.sigma, Predictions(model)), x0 + expected, atol=1e-10)

    def test_all_prompts_of_a_point_are_asked_for_in_one_call(self, model, point):
        x0, noise, x = point
        moves = (
            WordsMove(strength=1.0, towards="target", keep=(KEEP,)),
            WordsMove(strength=2.0, towards="free", keep=(KEEP, ("free", "negative"))),
            WordsMove(strength=0.0, towards="a prompt that there is not", keep=(("nor", "this"),)),
        )
        predictions = Predictions(model)
        anchored(model, x0, noise, *moves, prompt="negative")(x, model.sigma, predictions)
        beside, *on_path = predictions.calls
        assert sorted(beside) == ["free", "negative", "source", "target"]  # each once
        assert on_path == [["source"], [*KEEP], [*KEEP, "free", "negative"]]

    def test_a_run_with_a_move_comes_near_the_target(self, model):
        """FlowEdit's difference at strength 1, in many steps: the picture changes as the words ask for."""
        noise = model.denoiser.noise_of(model.x, model.x0, model.sigma)
        sigmas = torch.linspace(model.sigma, 0, 21, dtype=torch.float64).tolist()
        wanted = (model.prompts["target"].means - model.prompts["source"].means)[0].view(SHAPE)
        shares = []
        for strength in (-1.0, 0.0, 1.0):
            anchor = anchored(model, model.x0, noise, WordsMove(strength=strength, towards="target"))
            predictions = Predictions(model)
            end = sample_euler(model.denoiser.scale, model.x, sigmas, lambda x, s, a=anchor, p=predictions: a(x, s, p))
            shares.append(float(((end - model.x0) * wanted).sum() / wanted.square().sum()))
        assert shares[0] < -0.3
        assert abs(shares[1]) < 1e-12
        assert shares[2] > 0.3


class TestRangeOfLevels:
    """Words that act at some noise levels alone."""

    SIGMAS = (0.6, 0.45, 0.3, 0.15, 0.0)

    def run(self, model, sampler, levels=None, strength=1.0, recorded=False, sigmas=SIGMAS):
        """Where sampling ends, and the noise levels at which the model was asked for the target."""
        noise = model.denoiser.noise_of(model.x, model.x0, model.sigma)
        move = WordsMove(strength=strength, towards="target", levels=levels, recorded=recorded)
        anchor, asked, evaluations = anchored(model, model.x0, noise, move), [], []

        def predictions(x, sigma, names):
            evaluations.extend(names)
            asked.extend([sigma] * ("target" in names))
            return [model.denoiser(x, sigma, name) for name in names]

        end = sampler(model.denoiser.scale, model.x, list(sigmas), lambda x, sigma: anchor(x, sigma, predictions))
        return end, asked, evaluations

    @pytest.mark.parametrize(
        ("start", "end", "steps"),
        [
            (0.0, 0.5, [0, 1]), (0.5, 1.0, [2, 3]), (0.25, 0.75, [1, 2]), (0.3, 0.75, [2]), (0.0, 0.01, [0]),
            (0.0, 1.0, [0, 1, 2, 3]), (0.75, 1.0, [3]), (0.0, 0.76, [0, 1, 2, 3]),
        ],
    )  # fmt: skip
    def test_the_steps_of_a_share(self, start, end, steps):
        levels = levels_of_steps(self.SIGMAS, start, end)
        acting = [k for k in range(4) if WordsMove(strength=1.0, towards="", levels=levels).acts_at(self.SIGMAS[k])]
        assert acting == steps
        assert (levels is None) == (steps == [0, 1, 2, 3])

    @pytest.mark.parametrize("steps", [1, 3, 7, 10, 30, 200])
    def test_shares_are_not_rounded_away(self, steps):
        """k / n is where step k begins, whatever rounding makes of it."""
        sigmas = [1 - k / steps for k in range(steps + 1)]
        for k in range(steps):
            levels = levels_of_steps(sigmas, k / steps, (k + 1) / steps)
            move = WordsMove(strength=1.0, towards="", levels=levels)
            assert [i for i in range(steps) if move.acts_at(sigmas[i])] == [k]

    def test_a_share_without_a_step(self):
        with pytest.raises(NoiseLevelsError, match="No sampling step begins between 0.3 and 0.45"):
            levels_of_steps(self.SIGMAS, 0.3, 0.45)

    def test_levels_that_differ_by_rounding_are_the_same(self):
        move = WordsMove(strength=1.0, towards="", levels=(0.45, 0.15))
        for sigma, acts in ((0.45, True), (0.15, False)):
            for factor in (1 - 1e-6, 1.0, 1 + 1e-6):
                assert move.acts_at(sigma * factor) == acts
        assert not move.acts_at(0.46)
        assert move.acts_at(0.16)

    @pytest.mark.parametrize("recorded", [False, True])
    @pytest.mark.parametrize("sampler", [sample_euler, sample_heun])
    def test_outside_of_it_the_words_are_not_asked_for(self, sampler, recorded):
        """A sampler that predicts at the end of a step, too, is decided by the level there."""
        _, asked, _ = self.run(analytic("flow"), sampler, (0.45, 0.15), recorded=recorded)
        assert set(asked) == {0.45, 0.3}

    def test_before_it_the_picture_stays_and_after_it_the_response_goes_on(self):
        model = analytic("flow")
        whole, *_ = self.run(model, sample_euler)
        first, asked, evaluations = self.run(model, sample_euler, (0.6, 0.3))
        assert asked == [0.6, 0.45]
        # the first step is on the path; after the words the source is asked for at the moved point and on the path
        assert sorted(evaluations) == 7 * ["source"] + 2 * ["target"]
        assert not torch.allclose(first, model.x0, atol=1e-2)
        assert not torch.allclose(first, whole, atol=1e-3)
        late, asked, evaluations = self.run(model, sample_euler, (0.15, -1.0))
        assert asked == [0.15]
        assert sorted(evaluations) == ["source", "target"]  # nothing before it
        x_ref = 0.85 * model.x0 + 0.15 * model.denoiser.noise_of(model.x, model.x0, model.sigma)
        change = model.denoiser(x_ref, 0.15, "target") - model.denoiser(x_ref, 0.15)
        assert torch.allclose(late, model.x0 + change, atol=1e-10)

    def test_the_parts_of_a_run_add_up(self):
        """Two ranges side by side are the whole."""
        model = analytic("flow")
        noise = model.denoiser.noise_of(model.x, model.x0, model.sigma)
        ends = []
        for ranges in ([None], [(0.6, 0.3), (0.3, -1.0)]):
            moves = [WordsMove(strength=0.8, towards="target", levels=levels) for levels in ranges]
            anchor, asked = anchored(model, model.x0, noise, *moves), Predictions(model)
            ends.append(
                sample_euler(
                    model.denoiser.scale, model.x, list(self.SIGMAS), lambda x, s, a=anchor, p=asked: a(x, s, p)
                )
            )
        assert torch.allclose(*ends, atol=1e-12)

    def test_at_strength_zero_it_is_the_picture(self, model):
        move = WordsMove(strength=0.0, towards="target", levels=(0.45, 0.15))
        anchor, predictions = anchored(model, model.x0, seeded_noise(model.x0, 3), move), Predictions(model)
        assert torch.equal(anchor(anchor.reference(0.3), 0.3, predictions), model.x0)
        assert not predictions.calls


class TestCache:
    def asked(self, cache: ReferenceCache, keys: str, settings: str = "", kilobytes: int = 1) -> str:
        """The keys, one letter each, that had to be computed; each has its own number in its tensor."""
        computed = []

        def compute(missing):
            computed.extend(missing)
            return [torch.full((kilobytes * 256,), float(ord(key))) for key in missing]

        found = cache.get(settings, list(keys), compute)
        assert [chr(int(tensor[0])) for tensor in found] == list(keys)
        assert cache.bytes <= cache.max_bytes
        return "".join(computed)

    def test_computes_what_is_missing_once(self):
        cache = ReferenceCache()
        assert self.asked(cache, "aba") == "ab"
        assert self.asked(cache, "bca") == "c"
        assert self.asked(cache, "abc") == ""
        assert cache.bytes == 3 * 1024
        assert not cache.full

    def test_a_full_cache_stores_no_more_and_says_so(self):
        cache = ReferenceCache(max_bytes=3 * 1024)
        assert self.asked(cache, "abcd") == "abcd"
        assert cache.full
        assert self.asked(cache, "abcd") == "d"  # the others are still there
        assert cache.bytes == 3 * 1024

    def test_entries_of_other_settings_give_way(self):
        cache = ReferenceCache(max_bytes=3 * 1024)
        self.asked(cache, "abc", "cfg 1")
        assert self.asked(cache, "ab", "cfg 4") == "ab"
        assert not cache.full
        assert self.asked(cache, "ab", "cfg 4") == ""
        assert self.asked(cache, "a", "cfg 1") == "a"

    def test_it_is_not_full_for_ever(self):
        cache = ReferenceCache(max_bytes=2 * 1024)
        self.asked(cache, "abc", "cfg 1")
        assert cache.full
        self.asked(cache, "ab", "cfg 4")
        assert not cache.full

    def test_what_is_larger_than_the_cache(self):
        cache = ReferenceCache(max_bytes=1024)
        assert self.asked(cache, "a", kilobytes=2) == self.asked(cache, "a", kilobytes=2) == "a"
        assert cache.full

    def test_is_shared_by_all_strengths(self):
        """What is known of the reference path is not asked for again; another level, key or path is."""
        model, cache = analytic("flow"), ReferenceCache()
        noise = seeded_noise(model.x0, 3)

        def calls(sigma=0.6, strength=1.0, **options):
            move = WordsMove(strength=strength, towards="target", keep=(KEEP,))
            predictions = Predictions(model)
            anchored(model, model.x0, noise, move, cache=cache, **options)(model.x, sigma, predictions)
            return len(predictions.calls)

        assert calls() == 3  # beside the path, the source on it, and what is kept
        assert calls() == calls(strength=-2.0) == 1
        assert calls(sigma=0.5) == 3
        assert calls(key="another negative prompt") == 3

        def at_the_start(**options):
            predictions = Predictions(model)
            anchor = anchored(model, model.x0, noise, WordsMove(strength=1.0, towards="free"), cache=cache, **options)
            anchor(anchor.reference(0.6), 0.6, predictions)
            return predictions.calls

        assert at_the_start() == [["free"]]  # the source's is known
        assert at_the_start() == []
        # another run may have another prompt under the same name
        assert at_the_start(prompt="negative") == at_the_start(prompt="negative") == [["negative"]]
        assert calls(paths=NoisePaths(noise, seeds=(4,))) == 6  # of two paths
        assert calls(paths=NoisePaths(noise, seeds=(4,))) == 2
        assert calls(paths=NoisePaths(noise, seeds=(4,), fresh=True)) == 3
        assert calls() == 1

    def test_a_cached_run_comes_to_the_same(self, model):
        noise, cache = seeded_noise(model.x0, 3), ReferenceCache()
        move = NoiseMove(strength=1.0, keep=(KEEP,), displacement=random(*SHAPE[1:]))
        first, again, alone = (
            anchored(model, model.x0, noise, move, cache=c, prompt="target")(model.x, model.sigma, Predictions(model))
            for c in (cache, cache, ReferenceCache())
        )
        assert torch.equal(first, again)
        assert torch.equal(first, alone)


def test_predictions_to_keep_that_are_not_numbers():
    model = analytic("flow")

    def broken(x, _sigma, names):
        return [torch.full_like(x, float("nan")) for _ in names]

    anchor = anchored(
        model, model.x0, seeded_noise(model.x0, 3), WordsMove(strength=1.0, towards="target", keep=(KEEP,))
    )
    with pytest.raises(NotFiniteError, match="for what is to be kept hold values that are not numbers"):
        anchor(anchor.reference(0.6), 0.6, broken)


class TestNoisePaths:
    def test_one_path_is_the_base(self):
        base = random(*SHAPE)
        (path,) = NoisePaths(base).at(0.5)
        assert path is base

    def test_further_seeds_are_the_same_at_every_level(self):
        paths = NoisePaths(random(*SHAPE), seeds=(3, 4))
        first, again = paths.at(0.5), paths.at(0.2)
        assert len(first) == 3
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        assert not torch.equal(first[1], first[2])

    def test_fresh_noise_depends_on_the_level_and_repeats(self):
        paths = NoisePaths(random(*SHAPE), seeds=(3,), fresh=True)
        (a,), (b,), (other,) = paths.at(0.5), paths.at(0.5), paths.at(0.25)
        assert torch.equal(a, b)
        assert not torch.equal(a, other)
        assert a.shape == SHAPE
        assert a.dtype == torch.float64

    @pytest.mark.parametrize("seed", [3, 2**64 - 1])
    def test_fresh_noise_is_the_same_for_levels_that_differ_by_rounding(self, seed):
        """As those of two devices do; the next level of a schedule of 200 steps has noise of its own."""
        paths = NoisePaths(random(*SHAPE), seeds=(seed,), fresh=True)
        levels = [step / 200 for step in range(1, 201)]
        drawn = [paths.at(level)[0] for level in levels]
        for level, noise in zip(levels, drawn, strict=True):
            near = torch.tensor(level, dtype=torch.float32)
            for other in (torch.nextafter(near, torch.tensor(2.0)), torch.nextafter(near, torch.tensor(0.0))):
                assert torch.equal(paths.at(float(other))[0], noise)
        assert len({float(noise[0, 0, 0, 0]) for noise in drawn}) == len(levels)
        assert paths.at(0.0)[0].shape == SHAPE

    @pytest.mark.parametrize("fresh", [False, True])
    def test_changes_are_averaged_over_the_paths(self, model, fresh):
        """The displacement from the first path is carried over to all of them."""
        base = seeded_noise(model.x0, 3)
        paths = NoisePaths(base, seeds=(5, 6), fresh=fresh)
        move = WordsMove(strength=0.5, towards="target", keep=(KEEP,))
        anchor = anchored(model, model.x0, base, move, paths=paths)
        displacement = 0.2 * random(*SHAPE, seed=4)
        for sigma in (model.sigma, 0.5 * model.sigma):
            points = [model.denoiser.noised(model.x0, noise, sigma) for noise in paths.at(sigma)]
            assert len(points) == (2 if fresh else 3)

            def mean(name, moved, points=points, sigma=sigma):
                return sum(model.denoiser(point + moved, sigma, name) for point in points) / len(points)

            found = anchor(anchor.reference(sigma) + displacement, sigma, Predictions(model))
            carried = mean("source", displacement) - mean("source", 0)
            added = 0.5 * (mean("target", displacement) - mean("source", displacement))
            added = off(added, [mean(KEEP[0], 0) - mean(KEEP[1], 0)])
            assert torch.allclose(found, model.x0 + carried + added, atol=1e-10)

    @pytest.mark.parametrize("fresh", [False, True])
    def test_without_moves_any_paths_lead_back(self, model, fresh):
        noise = model.denoiser.noise_of(model.x, model.x0, model.sigma)
        anchor = anchored(model, model.x0, noise, paths=NoisePaths(noise, seeds=(5, 6), fresh=fresh))
        sigmas = torch.linspace(model.sigma, 0, 6, dtype=torch.float64).tolist()
        predictions = Predictions(model, guidance=3.0)
        back = sample_euler(model.denoiser.scale, model.x, sigmas, lambda x, sigma: anchor(x, sigma, predictions))
        assert torch.allclose(back, model.x0, atol=1e-12)

    def test_paths_follow_the_picture(self):
        """They may be kept in another type of number."""
        model = analytic("flow")
        noise = seeded_noise(model.x0, 3).float()
        anchor = anchored(model, model.x0, noise, paths=NoisePaths(noise, seeds=(5,)))
        assert anchor.noise.dtype == torch.float64
        found = anchor(anchor.reference(0.6), 0.6, Predictions(model))
        assert found.dtype == torch.float64
        assert torch.equal(found, model.x0)


class TestMovedNoise:
    def test_puts_the_noisy_latent_where_the_moves_want_it(self, model):
        noise = random(2, *SHAPE[1:], seed=3)
        first, second = (0.7 * random(*SHAPE[1:], seed=s) for s in (4, 5))
        moves = (
            NoiseMove(strength=1.5, displacement=first),
            WordsMove(strength=3.0, towards="target"),
            NoiseMove(strength=-0.5, displacement=second),
        )
        moved = moved_noise(noise, moves, model.b)
        assert torch.allclose(moved, noise + (1.5 * first - 0.5 * second) / model.b)
        before, after = (model.denoiser.noised(model.x0, n, model.sigma) for n in (noise, moved))
        assert torch.allclose(after, before + 1.5 * first - 0.5 * second)

    def test_nothing_moves(self):
        noise = random(2, *SHAPE[1:], seed=3)
        move = NoiseMove(strength=0.0, displacement=random(*SHAPE[1:]))
        assert torch.equal(moved_noise(noise, (move,), 2.5), noise)
        assert moved_noise(noise, (WordsMove(strength=1.0, towards="target"),), 2.5) is noise
        assert moved_noise(noise, (), 2.5) is noise

    def test_displacements_of_another_type_of_number(self):
        noise = random(1, *SHAPE[1:], seed=3)
        move = NoiseMove(strength=1.0, displacement=random(*SHAPE[1:]).half())
        assert moved_noise(noise, (move,), 1.0).dtype == torch.float64

    def test_another_size(self):
        move = NoiseMove(strength=1.0, displacement=random(4, 8, 8))
        with pytest.raises(ShapeError, match="found on a latent of 4 x 8 x 8, but this picture's is 4 x 8 x 9"):
            moved_noise(random(1, 4, 8, 9), (move,), 1.0)


class TestUnionOfMasks:
    def move(self, mask):
        return WordsMove(strength=1.0, mask=mask, towards="target")

    def test_is_the_largest_value_of_each_cell(self):
        a, b = torch.tensor([0.0, 0.2, 1.0]), torch.tensor([0.5, 0.1, 0.0])
        assert torch.equal(union_of_masks([self.move(a), self.move(b)]), torch.tensor([0.5, 0.2, 1.0]))
        assert union_of_masks([self.move(a)]) is a

    def test_everywhere(self):
        assert union_of_masks([]) is None
        assert union_of_masks([self.move(box()), self.move(None)]) is None


class TestSnap:
    def test_rounding_is_taken_away_bitwise(self):
        x_ref = random(3, 4, 5, 5, dtype=torch.float32)
        assert torch.equal(snap_to_reference(x_ref * (1 + 3e-6), x_ref), x_ref)

    def test_moves_are_left_alone(self):
        x_ref = random(3, 4, 5, 5, dtype=torch.float32)
        x = x_ref.clone()
        x[0, 1, 2, 3] += 1e-4 * x_ref[0].abs().max()  # one cell is enough
        assert torch.equal(snap_to_reference(x, x_ref), x)

    def test_each_sample_of_a_batch_for_itself(self):
        x_ref = random(2, 4, 5, 5, dtype=torch.float32)
        x = x_ref * 1.000002
        x[1] += 0.1
        snapped = snap_to_reference(x, x_ref)
        assert torch.equal(snapped[0], x_ref[0])
        assert torch.equal(snapped[1], x[1])

    def test_radius(self):
        x_ref = random(1, 4, 5, 5)
        x = x_ref + 5e-5 * x_ref.abs().max()
        assert torch.equal(snap_to_reference(x, x_ref), x)
        assert torch.equal(snap_to_reference(x, x_ref, 1e-4), x_ref)

    def test_the_prediction_snaps_within_its_radius(self, model):
        noise = seeded_noise(model.x0, 3)
        x = anchored(model, model.x0, noise).reference(model.sigma) * (1 + 1e-4)
        near, beside = (
            anchored(model, model.x0, noise, snap=snap)(x, model.sigma, Predictions(model)) for snap in (1e-3, 1e-5)
        )
        assert torch.equal(near, model.x0)
        assert not torch.equal(beside, model.x0)
