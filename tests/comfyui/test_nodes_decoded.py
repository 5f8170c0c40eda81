"""Pictures of predictions through real VAEs: right derivatives, the VAE as it was, and directions in decoded pixels."""

import copy

import comfy.ldm.models.autoencoder
import comfy.model_management
import comfy.sd
import folder_paths
import pytest
import torch
from diffusers_folders import kl_model, latents, load, pixels
from families import randomise
from node_runs import state_of

from latent_directions.core.jacobian_directions import loco, t_loco
from latent_directions.core.linalg import relative_error
from latent_directions.core.search import PROJECTIONS, Search, Settings
from latent_directions.core.self_check import KINK_AGREEMENT, KINK_STEP, PASSED
from latent_directions.demo import world
from latent_directions.demo.architecture import load_demo_model
from latent_directions.nodes.decoded import decoder_of, with_vae
from latent_directions.nodes.errors import InputError
from latent_directions.nodes.host import run

torch.set_num_threads(1)
CONFIG = {
    "double_z": True, "z_channels": 16, "resolution": 64, "in_channels": 3, "out_ch": 3, "ch": 32,
    "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0,
}  # fmt: skip


def small_kl(channels: int = 16, dtype: torch.dtype = torch.float32) -> comfy.sd.VAE:
    """ComfyUI's AutoencoderKL in miniature, with random weights."""
    params = {"ddconfig": CONFIG | {"z_channels": channels}, "embed_dim": channels}
    network = comfy.ldm.models.autoencoder.AutoencoderKL(**params)
    randomise(network, 3)
    vae = comfy.sd.VAE(sd=network.state_dict(), config={"params": params}, dtype=dtype)
    vae.latent_channels = channels
    return vae


@pytest.fixture(scope="module")
def demo():
    """The demo model as its loader node leaves it: its weights are inference tensors."""
    with torch.inference_mode():
        return load_demo_model()


@pytest.fixture(scope="module")
def portrait():
    """A portrait of the demo world, drawn."""
    portraits, drawn = world.sample_pool(1, 4, correlated=False)
    return portraits[0], torch.from_numpy(drawn).float() / 255


@pytest.fixture(scope="module")
def picture(demo, portrait):
    """The portrait as a LATENT."""
    with torch.inference_mode():
        return {"samples": demo[2].encode(portrait[1])}


@pytest.fixture(scope="module")
def mouth(portrait):
    """Where the mouth is drawn, in pixels (1, 1, H, W)."""
    return torch.from_numpy(world.masks(portrait[0])["mouth"]).float()[None, None]


@pytest.fixture(params=["demo", "AutoencoderKL", "AutoencoderKL in bfloat16"], scope="module")
def vae(request, demo):
    if request.param == "demo":
        return demo[2]
    with torch.inference_mode():
        return small_kl(dtype=torch.bfloat16 if "bfloat16" in request.param else torch.float32)


def search_with(demo, vae, picture, body, *, sigma=0.7, mask=None, negative=None, **settings):
    """What `body` makes of a Search on the decoded prediction of the demo model under "a face" and "a smiling face"."""
    model, clip, _ = demo
    decode, _ = decoder_of(vae, model)
    with torch.inference_mode():
        prompts = {
            "source": clip.encode_from_tokens_scheduled(clip.tokenize("a face")),
            "target": clip.encode_from_tokens_scheduled(clip.tokenize("a smiling face")),
            "negative": clip.encode_from_tokens_scheduled(clip.tokenize("a sad face")),
        }

    def in_sampler(denoiser, x0):
        noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1)).to(x0)
        x = denoiser.noised(x0, noise, sigma)
        return body(Search(denoiser, x, sigma, mask, Settings(**settings), decode=decode))

    with torch.inference_mode():
        return run(with_vae(model, vae), prompts, picture, sigma, in_sampler)[0]


def state_of_vae(vae) -> dict:
    """All of a VAE that a search could have changed."""
    wrapper = copy.copy(vae.patcher)
    wrapper.model = type("Holder", (), {"diffusion_model": vae.first_stage_model})()
    cast = {name: vars(module).get("comfy_cast_weights") for name, module in vae.first_stage_model.named_modules()}
    return state_of(wrapper) | {"cast": cast, "own": sorted(vars(vae)), "dtype": vae.vae_dtype}


class TestDerivatives:
    def test_products_agree(self, demo, vae, picture):
        def body(search):
            with search.checked(backward=True, as_chosen=True) as check:
                jacobian = check.jacobian
                generator = torch.Generator().manual_seed(2)
                v = torch.randn(search.x.shape, generator=generator)
                w = torch.randn(jacobian.value.shape, generator=generator)
                return check, jacobian.matvec(v), jacobian.difference(v, KINK_STEP)[0], jacobian.rmatvec(w), v, w

        check, product, difference, back, v, w = search_with(demo, vae, picture, body)
        assert check.backward
        assert check.sentence == PASSED
        assert check.jacobian.mode == "forward AD"
        assert product.shape == (1, 3, 64, 64)
        assert relative_error(product, difference) < KINK_AGREEMENT
        both = float((product.double() * w.double()).sum()), float((v.double() * back.double()).sum())
        assert both[0] == pytest.approx(both[1], abs=1e-4 * float(product.norm() * w.norm()))

    def test_the_picture_is_the_vaes_own(self, demo, vae, picture):
        def body(search):
            return search.denoiser(search.x, search.sigma), search.decode(search.denoiser(search.x, search.sigma))

        predicted, decoded = search_with(demo, vae, picture, body)
        with torch.inference_mode():
            own = vae.decode(demo[0].get_model_object("latent_format").process_out(predicted)).movedim(-1, 1)
        error = relative_error(((decoded + 1) / 2).clamp(0, 1), own)
        assert error < (1e-2 if vae.vae_dtype == torch.bfloat16 else 1e-5)
        assert decoded.dtype == predicted.dtype == torch.float32

    def test_a_block_of_points(self, demo, vae, picture):
        def body(search):
            points = torch.cat([search.x, -search.x])
            return search.decode(points), torch.cat([search.decode(point[None]) for point in points])

        together, alone = search_with(demo, vae, picture, body)
        assert torch.allclose(together, alone, atol=1e-4)

    def test_the_vae_is_as_it_was(self, demo, vae, picture):
        def body(search):
            with search.checked(backward=True, as_chosen=True) as check:
                assert check.backward

        # once before: ComfyUI itself marks the network when it is loaded first
        search_with(demo, vae, picture, body)
        before = state_of_vae(vae)
        search_with(demo, vae, picture, body)
        assert state_of_vae(vae) == before

    def test_the_vae_is_as_it_was_after_an_error(self, demo, vae, picture):
        layer = [module for module in vae.first_stage_model.modules() if isinstance(module, torch.nn.Conv2d)][-1]

        def fails(*_):
            msg = "in the decoder"
            raise MemoryError(msg)

        def body(search):
            hook = layer.register_forward_pre_hook(fails)
            try:
                with search.denoiser.differentiable(True), torch.enable_grad():
                    search.decode(search.x.clone().requires_grad_(True))
            finally:
                hook.remove()

        search_with(demo, vae, picture, lambda search: search.decode(search.x))
        before = state_of_vae(vae)
        with pytest.raises(MemoryError, match="in the decoder"):
            search_with(demo, vae, picture, body)
        assert state_of_vae(vae) == before

    def test_comfyui_loads_the_vae_beside_the_model(self, demo, vae, picture):
        comfy.model_management.unload_all_models()
        search_with(demo, vae, picture, lambda search: search.decode(search.x))
        there = [loaded.model.model for loaded in comfy.model_management.current_loaded_models]
        assert vae.first_stage_model in there
        assert demo[0].model in there
        assert not demo[0].additional_models


class TestDirections:
    """On the demo model, with the mask of the drawn mouth in pixels."""

    @pytest.mark.parametrize("projection", PROJECTIONS)
    def test_the_decoded_change_is_mostly_inside(self, demo, picture, mouth, projection):
        def body(search):
            (move, *_) = loco(search)
            h = 0.3 * move.step
            ahead, behind = (
                search.decode(search.denoiser(search.x + sign * h * move.vector, search.sigma)) for sign in (1, -1)
            )
            return move, (ahead - behind) / 0.6, search.decode(search.denoiser(search.x, search.sigma))

        move, change, plain = search_with(demo, demo[2], picture, body, mask=mouth, null_rank=5, projection=projection)
        energy = change.square().sum(1, keepdim=True)
        share = float((mouth * energy).sum() / energy.sum())
        assert share > 0.5  # of a mask of a few hundred of 4,096 pixels
        assert float(mouth.mean()) < 0.1
        rms = float(((mouth * change.square()).sum() / (3 * mouth.sum())).sqrt())
        assert rms == pytest.approx(0.25 * float(plain.std()), rel=0.3)  # linear as far as that
        assert float((mouth * change).sum()) > 0
        assert move.vector.shape == picture["samples"].shape

    def test_words_under_guidance(self, demo, picture, mouth):
        def body(search):
            (move,) = t_loco(search)
            ahead = search.decode(search.denoiser(search.x + move.step * move.vector, search.sigma))
            return search.notes, move, ahead - search.decode(search.denoiser(search.x, search.sigma))

        notes, move, change = search_with(
            demo, demo[2], picture, body, mask=mouth, null_rank=4, guidance=3.0, guided=True
        )
        assert notes["self_check"]["sentence"] == PASSED
        assert 0 < move.notes["share_left_by_null_space"] < 1
        assert float((mouth * change).norm()) > 0


class TestDiffusersFolders:
    """The VAEs of Load Diffusers Model: pixels as they are, and an autoencoder."""

    @pytest.mark.parametrize(("save", "cell"), [(pixels, 1), (lambda folder: latents(folder, kl_model), 2)])
    def test_decodes_with_derivatives(self, tmp_path, monkeypatch, save, cell):
        save(tmp_path / "model")
        monkeypatch.setitem(folder_paths.folder_names_and_paths, "diffusers", ([str(tmp_path)], ["folder"]))
        loaded = load("model")
        model, vae, latent_format = loaded.model, loaded.vae, loaded.model.get_model_object("latent_format")
        decode, pixels_per_cell = decoder_of(vae, model)
        assert pixels_per_cell == cell
        latent = torch.randn(1, latent_format.latent_channels, 16, 16, generator=torch.Generator().manual_seed(0))

        def body(denoiser, x0):
            search = Search(denoiser, x0 + denoiser.scale(1.0)[1] * x0.flip(-1), 1.0, decode=decode)
            with search.checked(backward=True, as_chosen=True) as check:
                return check, search.denoiser(search.x, 1.0), check.jacobian.value

        with torch.inference_mode():
            check, predicted, decoded = run(
                with_vae(model, vae), {"source": loaded.empty}, {"samples": latent}, 1.0, body
            )[0]
            own = vae.decode(latent_format.process_out(predicted)).movedim(-1, 1)
        assert check.backward
        assert check.sentence == PASSED
        assert decoded.shape == (1, 3, 16 * cell, 16 * cell)
        assert torch.allclose(((decoded + 1) / 2).clamp(0, 1), own, atol=1e-5)


class TestRefused:
    def test_pixels_of_a_cell(self, demo):
        assert decoder_of(demo[2], demo[0])[1] == 8

    def test_a_latent_of_five_dimensions(self, demo):
        decode, _ = decoder_of(demo[2], demo[0])
        latent = torch.randn(1, 16, 8, 8)
        with torch.no_grad():
            assert torch.equal(decode(latent[:, :, None]), decode(latent))

    @pytest.mark.parametrize(("dimensions", "kind"), [(3, "videos"), (1, "sound")])
    def test_a_vae_of_something_else(self, demo, dimensions, kind):
        other = copy.copy(demo[2])
        other.latent_dim = dimensions
        with pytest.raises(InputError, match=f"a VAE of {kind}"):
            decoder_of(other, demo[0])

    def test_a_vae_of_another_model(self, demo):
        with pytest.raises(InputError, match="latents of 4 channels, but the model's have 16"):
            decoder_of(small_kl(channels=4), demo[0])

    def test_a_file_without_a_vae(self, demo):
        with pytest.raises(InputError, match="holds no network"):
            decoder_of(comfy.sd.VAE(sd={}), demo[0])

    def test_pictures_that_have_no_three_colours(self, demo):
        other = copy.copy(demo[2])
        other.output_channels = 4
        with pytest.raises(InputError, match="pictures of 4 channels"):
            decoder_of(other, demo[0])
