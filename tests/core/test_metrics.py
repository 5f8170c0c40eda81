"""Measures of what an edit or a return changed."""

import math

import pytest
import torch

from latent_directions.core.errors import EmbeddingError, NoChangeError, ShapeError
from latent_directions.core.metrics import change_along_words, disentanglement, psnr, share_of_most_changed


def test_psnr():
    """-10 log10 of the mean squared error."""
    reference = torch.rand(1, 8, 8, 3, generator=torch.Generator().manual_seed(0))
    assert psnr(reference + 0.1, reference) == pytest.approx(20, abs=1e-4)
    assert psnr(reference + 0.01, reference) == pytest.approx(40, abs=1e-3)
    half = reference.clone()
    half[:, :4] += 0.1
    assert psnr(half, reference) == pytest.approx(20 + 3.0103, abs=1e-4)


def test_equal_pictures_have_none():
    reference = torch.rand(1, 8, 8, 3, generator=torch.Generator().manual_seed(0))
    assert psnr(reference.clone(), reference) is None


def test_half_precision_is_compared_in_single_precision():
    reference = torch.full((1, 4, 4, 3), 0.5).half()
    assert psnr(reference + 2**-10, reference) == pytest.approx(60.206, abs=1e-3)  # its square underflows in half


class TestShareOfMostChanged:
    def test_one_cell_and_everywhere(self):
        change = torch.zeros(3, 2, 4, 5)
        change[0, 1, 2, 3] = -0.5
        change[1] = 0.3
        local, everywhere, nothing = share_of_most_changed(change).tolist()
        assert (local, everywhere) == pytest.approx((1.0, 0.1), abs=1e-12)
        assert math.isnan(nothing)

    def test_channels_of_a_cell_count_together_and_part_of_a_cell_in_part(self):
        # energies 9, 4 + 12, 5 of three cells: half of three cells is the largest and half of the next
        change = torch.tensor([[[[3.0, 2.0, 1.0]]], [[[0.0, 12**0.5, 2.0]]]]).transpose(0, 1)
        assert share_of_most_changed(change, 0.5).tolist() == pytest.approx([(16 + 9 / 2) / 30])

    def test_with_an_axis_of_time(self):
        change = torch.randn(1, 4, 1, 6, 6, generator=torch.Generator().manual_seed(0))
        assert torch.equal(share_of_most_changed(change), share_of_most_changed(change[:, :, 0]))


def embeddings(seed: int = 0, pictures: int = 3, pairs: int = 2, width: int = 7):
    """Random embeddings before (C,), after (N, C), with and without (P, C) in float64."""
    generator = torch.Generator().manual_seed(seed)
    sizes = ((width,), (pictures, width), (pairs, width), (pairs, width))
    return [torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes]


def cosine(a, b) -> float:
    return float(a @ b / (a.norm() * b.norm()))


class TestChangeAlongWords:
    def test_every_entry_against_its_definition(self):
        before, after, present, absent = embeddings()
        found = change_along_words(before, after, present, absent)
        cosines = []
        for p in range(2):
            was = cosine(before, present[p]) - cosine(before, absent[p])
            words = present[p] / present[p].norm() - absent[p] / absent[p].norm()
            assert float(found.difference_before[p]) == pytest.approx(was, abs=1e-13)
            for n in range(3):
                now = cosine(after[n], present[p]) - cosine(after[n], absent[p])
                moved = after[n] / after[n].norm() - before / before.norm()
                assert float(found.difference[p, n]) == pytest.approx(now - was, abs=1e-13)
                both = torch.tensor([cosine(after[n], words_of[p]) for words_of in (present, absent)])
                expected = float((100 * both.double()).softmax(0)[0])
                assert float(found.probability_after[p, n]) == pytest.approx(expected, abs=1e-6)
                assert float(found.directional[p, n]) == pytest.approx(cosine(moved, words), abs=1e-13)
            pictures = [before, *after]
            cosines += [cosine(picture, words_of[p]) for picture in pictures for words_of in (present, absent)]
        assert found.mean_cosine == pytest.approx(sum(cosines) / len(cosines), abs=1e-13)
        assert found.similarity.tolist() == pytest.approx([cosine(before, picture) for picture in after], abs=1e-13)
        assert torch.equal(found.probability, found.probability_after - found.probability_before[:, None])

    def test_lengths_do_not_count(self):
        before, after, present, absent = embeddings()
        found = change_along_words(before, after, present, absent)
        scaled = change_along_words(3 * before, 0.2 * after, 5 * present, 7 * absent)
        assert torch.allclose(found.probability, scaled.probability, rtol=0, atol=1e-12)
        assert torch.allclose(found.directional, scaled.directional, rtol=0, atol=1e-12)

    def test_with_and_without_exchanged_change_the_sign(self):
        before, after, present, absent = embeddings()
        one, other = (
            change_along_words(before, after, present, absent),
            change_along_words(before, after, absent, present),
        )
        assert torch.allclose(one.probability, -other.probability, rtol=0, atol=1e-13)
        assert torch.allclose(one.difference, -other.difference, rtol=0, atol=1e-13)

    def test_no_change(self):
        before, _, present, absent = embeddings()
        found = change_along_words(before, before.repeat(2, 1), present, absent)
        assert not found.difference.abs().gt(1e-15).any()
        assert found.directional.isnan().all()
        assert found.similarity.tolist() == pytest.approx([1, 1])

    def test_single_precision_and_half_are_compared_in_double(self):
        given = embeddings()
        for dtype, error in ((torch.float32, 1e-5), (torch.float16, 0.05)):
            found = change_along_words(*(part.to(dtype) for part in given))
            assert found.difference.dtype == torch.float64
            assert torch.allclose(found.difference, change_along_words(*given).difference, rtol=0, atol=error)

    @pytest.mark.parametrize("which", range(4))
    @pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
    def test_what_is_no_embedding_is_refused(self, which, value):
        given = embeddings()
        given[which].reshape(-1, 7)[0] = value
        with pytest.raises(EmbeddingError):
            change_along_words(*given)

    def test_other_widths_are_refused(self):
        before, after, present, absent = embeddings()
        for given in ((before[:5], after, present, absent), (before, after, present, absent[:1])):
            with pytest.raises(ShapeError):
                change_along_words(*given)


class TestDisentanglement:
    def pictures(self):
        return torch.rand(4, 1, 6, 5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def test_against_its_definition(self):
        x, same, other, back = self.pictures()
        found = disentanglement(x, same, other, back)
        parts = [float((a - b).pow(2).sum().sqrt()) for a, b in ((x, same), (x, back), (other, same))]
        assert found.score == pytest.approx((parts[0] + parts[1]) / parts[2], rel=1e-12)
        root = x.numel() ** 0.5
        assert (found.unedited, found.edited_back, found.change) == pytest.approx([p / root for p in parts], rel=1e-12)

    def test_an_exact_return_scores_zero(self):
        x, _, other, _ = self.pictures()
        assert disentanglement(x, x, other, x).score == 0

    def test_a_larger_change_at_the_same_error_scores_lower(self):
        x = self.pictures()[0]
        scores = [disentanglement(x, x + 0.01, x + 0.01 + change, x + 0.02).score for change in (0.1, 0.2)]
        assert scores == pytest.approx([0.3, 0.15])

    def test_no_change_is_refused(self):
        x, same, _, back = self.pictures()
        with pytest.raises(NoChangeError, match="Both prompts give the same picture"):
            disentanglement(x, same, same.clone(), back)

    def test_other_sizes_are_refused(self):
        x, same, other, back = self.pictures()
        with pytest.raises(ShapeError):
            disentanglement(x[:, 1:], same, other, back)
