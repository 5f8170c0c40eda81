"""Load Diffusers Model against diffusers itself, its derivatives, the pack's nodes on it, and what it refuses."""

import json
import socket

import comfy.model_management
import comfy.sample
import comfy.samplers
import diffusers
import diffusers_folders
import folder_paths
import numpy as np
import pytest
import safetensors.torch
import torch
from derivative_errors import measure, reference
from diffusers_folders import GENTLE, SIZE, load
from node_runs import deviation, find, invert, sample, state_of

from latent_directions.core.operators import FORWARD_AD
from latent_directions.nodes.diffusers_folder import SHIPPED, folder_names
from latent_directions.nodes.errors import InputError
from latent_directions.nodes.manipulate import DirectionSlider

STEPS = 10  # divides the numbers of timesteps, or diffusers steps to timesteps that are not on its own list
AGREEMENT = 1e-4  # of ComfyUI's samples with diffusers'
KINDS = {
    "pixels": diffusers_folders.pixels,
    "latents": diffusers_folders.latents,
    "deepfloyd": diffusers_folders.deepfloyd,
    "text": diffusers_folders.with_text,
}


@pytest.fixture
def models(tmp_path, monkeypatch):
    """A models/diffusers of its own."""
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "diffusers", ([str(tmp_path)], ["folder"]))
    return tmp_path


def noise_of(loaded, seed: int = 0) -> torch.Tensor:
    channels = loaded.model.get_model_object("latent_format").latent_channels
    return torch.randn(1, channels, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def comfy_samples(loaded, scheduler, sampler="ddim", positive=None, negative=None, cfg=1.0):
    """ComfyUI's samples at the timesteps of a scheduler of diffusers, in ComfyUI's latent space."""
    sampling, noise = loaded.model.get_model_object("model_sampling"), noise_of(loaded)
    sigmas = torch.cat([sampling.sigmas[scheduler.timesteps], torch.zeros(1)])
    with torch.inference_mode():
        return comfy.sample.sample_custom(
            loaded.model,
            noise,
            cfg,
            comfy.samplers.sampler_object(sampler),
            sigmas,
            positive or loaded.empty,
            negative or loaded.empty,
            torch.zeros_like(noise),
            disable_pbar=True,
            seed=0,
        )


@torch.no_grad()
def diffusers_samples(network, scheduler, x):
    """The deterministic loop of diffusers' pipelines."""
    for timestep in scheduler.timesteps:
        predicted = network(x, timestep)[:, : x.shape[1]]
        x = scheduler.step(predicted, timestep, x, eta=0.0).prev_sample
    return x


@pytest.mark.parametrize("sampler", ["ddim", "euler"])
@pytest.mark.parametrize(
    "settings",
    [
        {"prediction_type": "epsilon", **GENTLE},
        {"prediction_type": "epsilon"},
        {"prediction_type": "v_prediction", "beta_schedule": "scaled_linear"},
        {"prediction_type": "v_prediction", "beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 200},
        {"prediction_type": "sample", "beta_start": 0.001, "beta_end": 0.03},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_samples_of_a_pixel_model_are_those_of_diffusers(models, settings, sampler):
    pipeline = diffusers_folders.pixels(models / "ddpm", **settings)
    pipeline.scheduler.set_timesteps(STEPS)
    loaded = load("ddpm")
    expected = diffusers_samples(lambda x, t: pipeline.unet(x, t).sample, pipeline.scheduler, noise_of(loaded))
    found = comfy_samples(loaded, pipeline.scheduler, sampler)
    assert deviation(found, expected) < AGREEMENT


def test_the_picture_of_a_pixel_model_is_that_of_diffusers_pipeline(models):
    pipeline = diffusers_folders.pixels(models / "ddpm", **GENTLE)
    loaded = load("ddpm")
    generator = torch.Generator().manual_seed(0)
    expected = pipeline(generator=generator, eta=0.0, num_inference_steps=STEPS, output_type="np").images
    with torch.inference_mode():
        picture = loaded.vae.decode(comfy_samples(loaded, pipeline.scheduler))
    inside = (expected > 0) & (expected < 1)  # of the picture's range, to which the pipeline cuts
    assert inside.mean() > 0.3
    assert np.abs(picture.numpy() - expected).max() < AGREEMENT


def test_a_learned_variance_is_left_out(models):
    network = diffusers_folders.unet(out_channels=6)
    scheduler = diffusers.DDPMScheduler(variance_type="learned_range", clip_sample=False, **GENTLE)
    diffusers.DDPMPipeline(network, scheduler).save_pretrained(models / "ddpm")
    deterministic = diffusers_folders.ddim(**GENTLE)
    deterministic.set_timesteps(STEPS)
    loaded = load("ddpm")
    expected = diffusers_samples(lambda x, t: network(x, t).sample, deterministic, noise_of(loaded))
    assert deviation(comfy_samples(loaded, deterministic), expected) < AGREEMENT


def test_a_folder_whose_unet_is_at_its_root(models):
    """As google/ddpm-celebahq-256 and its like are laid out."""
    pipeline = diffusers_folders.pixels(models / "nested", **GENTLE)
    pipeline.unet.save_pretrained(models / "ddpm")
    pipeline.scheduler.save_pretrained(models / "ddpm")
    (models / "ddpm" / "model_index.json").write_bytes((models / "nested" / "model_index.json").read_bytes())
    pipeline.scheduler.set_timesteps(STEPS)
    nested, flat = load("nested"), load("ddpm")
    assert torch.equal(comfy_samples(nested, pipeline.scheduler), comfy_samples(flat, pipeline.scheduler))


@pytest.mark.parametrize("autoencoder", [diffusers_folders.vq_model, diffusers_folders.kl_model])
def test_the_picture_of_a_latent_model_is_that_of_diffusers_pipeline(models, autoencoder):
    pipeline = diffusers_folders.latents(models / "ldm", autoencoder, **GENTLE)
    loaded = load("ldm")
    generator = torch.Generator().manual_seed(0)
    if autoencoder is diffusers_folders.vq_model:
        expected = pipeline(generator=generator, eta=0.0, num_inference_steps=STEPS, output_type="np").images
    else:  # the pipeline takes VQModel alone in some versions
        pipeline.scheduler.set_timesteps(STEPS)
        x = diffusers_samples(lambda x, t: pipeline.unet(x, t).sample, pipeline.scheduler, noise_of(loaded))
        with torch.no_grad():
            decoded = pipeline.vqvae.decode(x / pipeline.vqvae.config.scaling_factor).sample
        expected = (decoded / 2 + 0.5).clamp(0, 1).movedim(1, -1).numpy()
    with torch.inference_mode():
        picture = loaded.vae.decode(comfy_samples(loaded, pipeline.scheduler))
    assert picture.shape == (1, 2 * SIZE, 2 * SIZE, 3)
    assert np.abs(picture.numpy() - expected).max() < AGREEMENT


def test_a_picture_and_the_latent_of_it(models):
    """Through the VAE of a pixel model a picture comes back, and in the model's space it is in -1..1."""
    diffusers_folders.pixels(models / "ddpm")
    loaded = load("ddpm")
    picture = torch.rand(1, SIZE, SIZE, 3, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        latent = loaded.vae.encode(picture)
        again = loaded.vae.decode(latent)
    assert latent.shape == (1, 3, SIZE, SIZE)
    assert torch.allclose(loaded.model.model.process_latent_in(latent), picture.movedim(-1, 1) * 2 - 1, atol=1e-6)
    assert torch.allclose(again, picture, atol=1e-6)


def test_a_latent_of_an_autoencoder_has_its_scale(models):
    pipeline = diffusers_folders.latents(models / "ldm", diffusers_folders.kl_model)
    loaded = load("ldm")
    picture = torch.rand(1, 2 * SIZE, 2 * SIZE, 3, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        latent = loaded.vae.encode(picture)
        mean = pipeline.vqvae.encode(picture.movedim(-1, 1) * 2 - 1).latent_dist.mode()
    scaled = loaded.model.model.process_latent_in(latent)
    assert torch.allclose(scaled, mean * pipeline.vqvae.config.scaling_factor, atol=1e-5)
    assert torch.allclose(loaded.model.model.process_latent_out(scaled), latent, atol=1e-5)


def test_deepfloyd_is_that_of_diffusers(models):
    pipeline = diffusers_folders.deepfloyd(models / "if")
    loaded = load("if")
    scheduler = diffusers_folders.ddim(beta_schedule="squaredcos_cap_v2")
    scheduler.set_timesteps(STEPS)
    with torch.no_grad():
        prompts = pipeline.encode_prompt("A sad person", negative_prompt="a hat", device="cpu")
    with torch.inference_mode():
        positive, negative = (
            loaded.clip.encode_from_tokens_scheduled(loaded.clip.tokenize(text)) for text in ("A sad person", "a hat")
        )
    for (found, _), expected in zip((*positive, *negative), prompts, strict=True):
        assert deviation(found, expected) < AGREEMENT

    def guided(x, timestep):
        wanted, unwanted = (
            pipeline.unet(x, timestep, encoder_hidden_states=prompt).sample[:, :3] for prompt in prompts
        )
        return unwanted + 3.0 * (wanted - unwanted)

    expected = diffusers_samples(guided, scheduler, noise_of(loaded))
    found = comfy_samples(loaded, scheduler, positive=positive, negative=negative, cfg=3.0)
    assert deviation(found, expected) < AGREEMENT


def test_latent_diffusion_with_text_is_that_of_diffusers_pipeline(models):
    pipeline = diffusers_folders.with_text(models / "sd", diffusers_folders.ddim(**GENTLE))
    loaded = load("sd")
    with torch.inference_mode():
        positive, negative = (
            loaded.clip.encode_from_tokens_scheduled(loaded.clip.tokenize(text)) for text in ("a sad person", "a hat")
        )
    with torch.no_grad():
        expected = pipeline(
            "a sad person",
            negative_prompt="a hat",
            guidance_scale=3.0,
            num_inference_steps=STEPS,
            latents=noise_of(loaded),
            output_type="np",
        ).images
    with torch.inference_mode():
        samples = comfy_samples(loaded, pipeline.scheduler, positive=positive, negative=negative, cfg=3.0)
        picture = loaded.vae.decode(samples)
    assert np.abs(picture.numpy() - expected).max() < AGREEMENT


@pytest.mark.parametrize("guidance", [None, 3.0])
def test_a_consistency_model_is_that_of_diffusers_pipeline(models, guidance):
    from comfy_extras.nodes_flux import FluxGuidance

    pipeline = diffusers_folders.with_text(models / "lcm", diffusers.LCMScheduler(), time_cond_proj_dim=16)
    loaded = load("lcm")
    with torch.inference_mode():
        positive = loaded.clip.encode_from_tokens_scheduled(loaded.clip.tokenize("a sad person"))
        if guidance is not None:
            positive = FluxGuidance.execute(positive, guidance).args[0]
    with torch.no_grad():
        expected = pipeline(
            "a sad person",
            num_inference_steps=1,
            guidance_scale=8.5 if guidance is None else guidance,
            latents=noise_of(loaded),
            output_type="latent",
        ).images
    found = comfy_samples(loaded, pipeline.scheduler, positive=positive)
    assert deviation(loaded.model.model.process_latent_in(found), expected) < AGREEMENT


@pytest.mark.parametrize("kind", KINDS)
def test_products_of_derivatives(models, kind):
    """J v and J'v against differences of a float64 copy; all is put back, diffusers' attention processors too."""
    KINDS[kind](models / kind)
    loaded = load(kind)
    model = diffusers_folders.test_model(kind, loaded)
    comfy.model_management.load_models_gpu([model.model])  # sets attributes of every layer
    before, unet = state_of(model.model), model.model.model.diffusion_model.unet
    processors = dict(unet.attn_processors) if hasattr(unet, "attn_processors") else {}
    truth = reference(model, 1.0)
    assert truth.uncertainty < 1e-4
    found = measure(model, truth, 1.0)
    assert not found.refusal
    assert found.check.jacobian.mode == FORWARD_AD
    assert found.check.backward
    assert max([*found.forward.values(), *found.double.values(), *found.adjoint.values()]) < 1e-3
    assert found.distance < 1e-4
    assert state_of(model.model) == before
    assert (dict(unet.attn_processors) if processors else {}) == processors


@pytest.mark.parametrize("kind", KINDS)
def test_a_slider_end_to_end(models, kind):
    """Encode Picture, Find Directions without words, Direction Slider: 0 gives the picture back exactly."""
    KINDS[kind](models / kind, **(GENTLE if kind in ("pixels", "latents") else {}))
    loaded = load(kind)
    model = diffusers_folders.test_model(kind, loaded)
    comfy.model_management.load_models_gpu([model.model])  # sets attributes of every layer
    before = state_of(model.model)
    side = SIZE * loaded.vae.spacial_compression_encode()
    with torch.inference_mode():
        pictures = torch.rand(1, side, side, 3, generator=torch.Generator().manual_seed(1))
        latent = {"samples": loaded.vae.encode(pictures)}
    encoded = invert(model, latent)
    mask = torch.zeros(1, side, side)
    mask[:, : side // 2] = 1
    directions, report = find(model, encoded.inversion, "LOCO", mask=mask, clip=None, source="", target="")
    assert directions[0].latent is not None
    assert "self-check" in report

    def slid(strength):
        with torch.inference_mode():
            moved = DirectionSlider.execute(encoded.inversion, directions, 0, strength).args
        samples = sample(model, encoded, model=moved[0], positive=moved[1], noise=moved[2])
        with torch.inference_mode():
            return samples, loaded.vae.decode(samples)

    with torch.inference_mode():
        plain = loaded.vae.decode(latent["samples"])
    samples, picture = slid(0.0)
    assert torch.equal(samples, latent["samples"])
    assert torch.equal((picture * 255).round(), (plain * 255).round())
    assert deviation(slid(1.0)[0], samples) > 1e-3
    assert state_of(model.model) == before


def rewrite(path, **changes):
    """Change settings in a json file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def no_unet(folder):
    rewrite(folder / "model_index.json", unet=[None, None])


def pickled(folder):
    (folder / "unet" / "diffusion_pytorch_model.safetensors").rename(folder / "unet" / "diffusion_pytorch_model.bin")


def pieces_outside(folder):
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(folder / "elsewhere.safetensors")
    index = {"weight_map": {"conv_in.weight": "../elsewhere.safetensors"}}
    (folder / "unet" / f"{weights.name}.index.json").write_text(json.dumps(index))


def lacks_weights(folder):
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = safetensors.torch.load_file(file)
    del weights["conv_in.weight"]
    safetensors.torch.save_file(weights, file, {"format": "pt"})


REFUSED = {
    "no unet": (no_unet, "model_index.json names no unet"),
    "another network": (lambda f: rewrite(f / "unet" / "config.json", _class_name="DiTModel"), "unet is 'DiTModel'"),
    "no settings": (lambda f: (f / "unet" / "config.json").unlink(), "unet has no config.json"),
    "no json": (lambda f: (f / "unet" / "config.json").write_text("[1"), "config.json cannot be read"),
    "another list": (lambda f: (f / "model_index.json").write_text("[1]"), "model_index.json cannot be read"),
    "pickled": (pickled, "has only pickled weights .diffusion_pytorch_model.bin"),
    "pieces outside": (pieces_outside, "names '../elsewhere.safetensors', which is no safetensors file beside it"),
    "no weights": (lambda f: (f / "unet" / "diffusion_pytorch_model.safetensors").unlink(), "unet has no weights"),
    "damaged": (
        lambda f: (f / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"version https://git-lfs"),
        "unet cannot be read",
    ),
    "a weight missing": (lacks_weights, "unet lacks 1 of the weights"),
    "other shapes": (lambda f: rewrite(f / "unet" / "config.json", block_out_channels=[32, 32]), "unet"),
    "nonsense": (lambda f: rewrite(f / "unet" / "config.json", block_out_channels="x"), "unet cannot be read"),
    "classes": (lambda f: rewrite(f / "unet" / "config.json", num_class_embeds=3), "unet"),
    "more channels": (lambda f: rewrite(f / "unet" / "config.json", in_channels=6), "unet"),
    "another scheduler": (
        lambda f: rewrite(f / "scheduler" / "scheduler_config.json", _class_name="ScoreSdeVeScheduler"),
        "scheduler is 'ScoreSdeVeScheduler'",
    ),
    "another prediction": (
        lambda f: rewrite(f / "scheduler" / "scheduler_config.json", prediction_type="flow_prediction"),
        "predicts 'flow_prediction'",
    ),
    "another schedule": (
        lambda f: rewrite(f / "scheduler" / "scheduler_config.json", beta_schedule="x"),
        "scheduler cannot be read",
    ),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_what_cannot_be_loaded_is_refused_in_a_sentence(models, fault):
    spoil, said = REFUSED[fault]
    diffusers_folders.pixels(models / "ddpm")
    spoil(models / "ddpm")
    with pytest.raises(InputError, match=said) as refusal:
        load("ddpm")
    assert str(refusal.value).startswith("'folder' is 'ddpm', ")
    assert str(refusal.value).endswith(".")


@pytest.mark.parametrize("part", ["tokenizer", "text_encoder"])
def test_missing_files_of_the_text_encoder(models, part):
    diffusers_folders.with_text(models / "sd")
    for file in (models / "sd" / part).iterdir():
        if file.suffix != ".json" or part == "tokenizer":
            file.unlink()
    with pytest.raises(InputError, match="lacks the files of its tokenizer|text_encoder has no weights"):
        load("sd")


def test_a_text_encoder_of_another_class(models):
    diffusers_folders.with_text(models / "sd")
    rewrite(models / "sd" / "model_index.json", text_encoder=["transformers", "BertModel"])
    with pytest.raises(InputError, match="with 'BertModel' as its text encoder. This node knows CLIPTextModel and T5"):
        load("sd")


@pytest.mark.parametrize("name", [None, "", "missing", "../outside", "/", "ddpm/unet", 3, "a\0b"])
def test_names_that_are_not_in_the_list(models, name, tmp_path_factory):
    diffusers_folders.pixels(models / "inside" / "ddpm")
    diffusers_folders.pixels(models / "outside")
    folder_paths.folder_names_and_paths["diffusers"][0][:] = [str(models / "inside")]
    with pytest.raises(InputError, match="'folder' is"):
        load(name)


def test_nothing_is_fetched(models, monkeypatch):
    """Every connection fails at once, and none is tried."""
    diffusers_folders.with_text(models / "sd")
    tried = []
    monkeypatch.setattr(socket.socket, "connect", lambda *arguments: tried.append(arguments))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **_: tried.append(arguments))
    load("sd")
    assert not tried


def test_a_size_that_the_network_cannot_halve(models):
    diffusers_folders.pixels(models / "ddpm")
    model = diffusers_folders.test_model("ddpm", load("ddpm"))
    with pytest.raises(InputError, match="The latent is 16 x 15 cells, but this model takes multiples of 2"):
        invert(model, {"samples": torch.rand(1, 3, 15, 16)})


def test_empty_latents_of_comfyui_become_pictures(models):
    """Empty Latent Image has four channels and an eighth of the size; KSampler asks the model what it needs."""
    from nodes import EmptyLatentImage, KSampler

    diffusers_folders.pixels(models / "ddpm", **GENTLE)
    loaded = load("ddpm")
    with torch.inference_mode():
        (latent,) = EmptyLatentImage().generate(SIZE, SIZE)
        (made,) = KSampler().sample(
            loaded.model, 1, 2, 1.0, "euler", "simple", loaded.empty, loaded.empty, latent, denoise=1.0
        )
        assert loaded.vae.decode(made["samples"]).shape == (1, SIZE, SIZE, 3)


def test_folders_are_listed_as_comfyui_lists_them(models):
    from nodes import DiffusersLoader

    diffusers_folders.pixels(models / "one")
    (models / "two" / "below").mkdir(parents=True)
    (models / "two" / "below" / "model_index.json").write_text("{}")
    (models / "no_model").mkdir()
    *names, last = folder_names()
    assert names == sorted(DiffusersLoader.INPUT_TYPES()["required"]["model_path"][0])
    assert len(names) == 2
    assert last == SHIPPED
