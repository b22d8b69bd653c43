"""LoRAs: in diffusers' format and kohya's, switched between the forwards of neighbors that have others or none."""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from original_layout import unet_tensors
from safetensors.torch import save_file
from tiny_pipelines import TINY_FAMILIES
from torch import Generator, Tensor

from darkroom_engine import Engine, Handle, InvalidRequest, LoraLoadError, Request, UnknownModel
from darkroom_engine.quiet import quiet

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

RANK = 4
# Adding the product to the weights, or its result to theirs, are two orders of float32 sums: 4e-4 was measured where
# two adapters outweigh the weights.
TOLERANCE = 1e-3

Weights = dict[str, Tensor]


def _matrices(pipeline: DiffusionPipeline, parts: dict[str, tuple[str, ...]], seed: int) -> Weights:
    """Draw an adapter for some modules of a pipeline, in peft's naming."""
    generator = Generator().manual_seed(seed)
    weights = {}
    for part, endings in parts.items():
        for name, module in getattr(pipeline, part).named_modules():
            if name.endswith(endings):
                shape = module.weight.shape  # (out, in, ...)
                down, up = (RANK, *shape[1:]), (shape[0], RANK, *(1 for _ in shape[2:]))
                weights[f"{part}.{name}.lora_A.weight"] = torch.randn(down, generator=generator) * 0.3
                weights[f"{part}.{name}.lora_B.weight"] = torch.randn(up, generator=generator) * 0.3
    return weights


def _as_kohya(pipeline: DiffusionPipeline, weights: Weights, alpha: float) -> Weights:
    """Name an adapter's tensors as kohya's trainer does, with an alpha for each module.

    It knows SD's UNet by diffusers' names, and SDXL's by those of the original code.
    """
    is_xl = hasattr(pipeline, "text_encoder_2")
    original = dict(zip(pipeline.unet.state_dict(), unet_tensors(pipeline.unet), strict=True))
    renamed = {}
    for key, tensor in weights.items():
        part, _, rest = key.partition(".")
        module, _, matrix = rest.removesuffix(".weight").rpartition(".")
        if part == "unet" and is_xl:
            module = original[f"{module}.weight"].removeprefix("model.diffusion_model.").removesuffix(".weight")
        number = {"text_encoder": "1", "text_encoder_2": "2"}[part] if is_xl and part != "unet" else ""
        prefix = "lora_unet_" if part == "unet" else f"lora_te{number}_text_model_"
        module = prefix + module.removeprefix("text_model.").replace(".", "_")
        renamed[f"{module}.{'lora_down' if matrix == 'lora_A' else 'lora_up'}.weight"] = tensor
        renamed[f"{module}.alpha"] = torch.tensor(alpha)
    return renamed


UNET = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "proj_in", "conv1")
TEXT_ENCODER = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


@pytest.fixture(scope="module", params=["sd", "sdxl"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def own_pipeline(name: str) -> DiffusionPipeline:
    """A pipeline for this test alone: diffusers' loading of LoRAs leaves its layers in it."""
    pipeline = TINY_FAMILIES[name].build()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def files(own_pipeline: DiffusionPipeline, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """LoRAs of several kinds: of the denoiser alone, of the text encoders too, and as kohya writes them."""
    folder = tmp_path_factory.mktemp("loras")
    encoders = {part: TEXT_ENCODER for part in ("text_encoder", "text_encoder_2") if hasattr(own_pipeline, part)}
    weights = {
        "ink": _matrices(own_pipeline, {"unet": UNET}, 1),
        "wool": _matrices(own_pipeline, {"unet": ("to_q", "to_out.0"), **encoders}, 2),
    }
    everywhere = _matrices(own_pipeline, {"unet": UNET, **encoders}, 3)
    weights["kohya"] = _as_kohya(own_pipeline, everywhere, alpha=RANK / 2)
    for lora, tensors in weights.items():
        save_file(tensors, folder / f"{lora}.safetensors")
    return {lora: folder / f"{lora}.safetensors" for lora in weights}


@pytest.fixture(scope="module")
def engine(
    own_pipeline: DiffusionPipeline, name: str, files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp("models") / name
    with quiet():
        own_pipeline.save_pretrained(folder)
    engine = Engine("cpu", 32, num_threads=1)
    engine.load(name, source=str(folder))
    for lora, file in files.items():
        engine.load_lora(name, lora, source=str(file))
    yield engine
    engine.stop()


@pytest.fixture
def ask(name: str) -> Callable[..., Request]:
    def build(**fields: Any) -> Request:
        defaults: dict[str, Any] = {
            "model": name,
            "prompt": "a red house",
            "negative_prompt": "blue",
            "width": 32,
            "height": 32,
            "num_inference_steps": 3,
            "guidance_scale": 3.0,
            "sampler": "euler",
            "seed": 1,
        }
        return Request(**(defaults | fields))

    return build


def of_diffusers(pipeline: DiffusionPipeline, files: dict[str, Path], request: Request) -> Tensor:
    """The last latents of diffusers' own pipeline, with its own loading of LoRAs."""
    with quiet(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute", category=UserWarning)
        for lora, _ in request.loras:
            pipeline.load_lora_weights(str(files[lora]), adapter_name=lora)
        pipeline.set_adapters([lora for lora, _ in request.loras], [weight for _, weight in request.loras])
    try:
        latents: Tensor = pipeline(
            request.prompt,
            negative_prompt=request.negative_prompt,
            width=request.width,
            height=request.height,
            num_inference_steps=request.num_inference_steps,
            guidance_scale=request.guidance_scale,
            generator=Generator().manual_seed(request.seed),
            output_type="latent",
        ).images
        return latents
    finally:
        pipeline.unload_lora_weights()


@pytest.mark.parametrize(
    "loras", [(("ink", 1.0),), (("wool", 0.7),), (("ink", -0.5), ("wool", 1.5)), (("kohya", 0.8),)]
)
def test_a_picture_with_loras_is_that_of_diffusers(
    engine: Engine,
    own_pipeline: DiffusionPipeline,
    files: dict[str, Path],
    ask: Callable[..., Request],
    step_all: Callable[..., dict[int, Tensor]],
    loras: tuple[tuple[str, float], ...],
) -> None:
    ours = step_all(engine, ask(loras=loras))[1]
    plain = step_all(engine, ask())[1]
    theirs = of_diffusers(own_pipeline, files, ask(loras=loras))
    assert (ours - plain).abs().max() > 0.1 * plain.abs().max()
    assert (ours - theirs).abs().max() < TOLERANCE * theirs.abs().max()


def test_neighbors_with_other_loras_or_none_leave_a_picture_bit_equal(
    engine: Engine, ask: Callable[..., Request], develop: Callable[..., list[Handle]]
) -> None:
    requests = [
        ask(),
        ask(loras=(("ink", 1.0),)),
        ask(loras=(("wool", 1.0),)),
        ask(loras=(("ink", 0.5),)),
        ask(loras=(("wool", 1.0), ("ink", 1.0))),
    ]
    alone = [develop(engine, request)[0].result(0).image for request in requests]
    together = [handle.result(0).image for handle in develop(engine, *requests)]
    assert len({picture.tobytes() for picture in alone}) == len(requests)
    for one, other in zip(alone, together, strict=True):
        assert np.array_equal(one, other)


def test_a_model_that_has_no_lora_in_it_is_bit_equal_to_what_it_was(
    engine: Engine, name: str, own_pipeline: DiffusionPipeline, ask: Callable[..., Request], develop: Any
) -> None:
    develop(engine, ask(loras=(("ink", 1.0), ("wool", 1.0))))
    develop(engine, ask())
    model = engine._runner.models[name]
    for part in ("unet", "text_encoder"):
        loaded = getattr(model, part).state_dict()
        assert all(tensor.equal(loaded[key]) for key, tensor in getattr(own_pipeline, part).state_dict().items())


def test_a_lora_is_right_on_a_model_that_waited_on_the_host(
    engine: Engine,
    name: str,
    own_pipeline: DiffusionPipeline,
    files: dict[str, Path],
    ask: Any,
    develop: Any,
    tmp_path: Path,
) -> None:
    with quiet():
        own_pipeline.save_pretrained(tmp_path / name)
    narrow = Engine("cpu", 32, num_threads=1, max_model_bytes=1)
    narrow.load(name, source=str(tmp_path / name))
    narrow.load("other", source="seeded:7")
    narrow.load_lora(name, "ink", source=str(files["ink"]))
    other = ask(model="other", width=64, height=64)
    pictures = [develop(narrow, request)[0].result(0).image for request in (ask(loras=(("ink", 1.0),)), other, ask())]
    expected = [develop(engine, request)[0].result(0).image for request in (ask(loras=(("ink", 1.0),)), ask())]
    narrow.stop()
    for found, wanted in zip((pictures[0], pictures[2]), expected, strict=True):
        # Weights that lie elsewhere in memory may be summed in another order: one gray level at most.
        assert np.abs(found.astype(int) - wanted).max() <= 1


def test_requests_with_the_same_loras_share_a_forward(engine: Engine, ask: Callable[..., Request]) -> None:
    keys = [
        engine._runner.prepare(ask(loras=loras, seed=seed)).batch_key
        for seed, loras in enumerate([(("ink", 1.0),), (("ink", 1.0),), (("ink", 0.5),), ()])
    ]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3


def test_a_lora_that_is_not_loaded_is_refused_with_those_that_are(engine: Engine, ask: Callable[..., Request]) -> None:
    with pytest.raises(InvalidRequest, match="loras names 'oil', which is not loaded; loaded are: ink, wool"):
        engine.submit(ask(loras=(("oil", 1.0),)))


def test_a_lora_that_is_named_twice_is_refused(engine: Engine, ask: Callable[..., Request]) -> None:
    with pytest.raises(InvalidRequest, match="loras names 'ink' more than once"):
        engine.submit(ask(loras=(("ink", 1.0), ("ink", 0.5))))


def test_what_a_lora_takes_of_the_memory_is_counted(engine: Engine, name: str, files: dict[str, Path]) -> None:
    model = engine._runner.models[name]
    assert engine.models[name].num_bytes == model.num_bytes
    sizes = sum(file.stat().st_size for file in files.values())
    assert model.adapters.num_bytes > 0.9 * sizes  # type: ignore[attr-defined]


def _without(ending: str) -> Callable[[Weights], Weights]:
    return lambda weights: {key: tensor for key, tensor in weights.items() if not key.endswith(ending)}


BROKEN: dict[str, tuple[Callable[[Weights], Weights], str]] = {
    "of another model": (
        lambda weights: {key.replace("mid_block", "mid_block.more"): tensor for key, tensor in weights.items()},
        "is not in this model, whose parts are unet, text_encoder",
    ),
    "of another family": (
        lambda weights: {key.replace("unet.", "transformer."): tensor for key, tensor in weights.items()},
        "is not in this model, whose parts are unet, text_encoder",
    ),
    "of another width": (
        lambda weights: {key: tensor[..., :-1] if "lora_A" in key else tensor for key, tensor in weights.items()},
        "and the weight's is",
    ),
    "half of it": (_without("lora_B.weight"), "lora_B.weight"),
    "DoRA": (lambda weights: {**weights, "unet.to_q.lora_magnitude_vector": torch.ones(2)}, "is of a DoRA"),
    "LoKr": (lambda weights: {"lora_unet_mid.lokr_w1": torch.ones(2)}, "lora_unet_mid.lokr_w1 is of a LoKr"),
    "nothing": (lambda weights: {}, "nothing in it is part of a LoRA"),
    "something else": (
        lambda weights: {**weights, "unet.to_q.diff": torch.ones(2)},
        "unet.to_q.diff is no part of a LoRA",
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_lora_is_refused_in_one_sentence(
    engine: Engine, name: str, own_pipeline: DiffusionPipeline, tmp_path: Path, fault: str
) -> None:
    breaks, problem = BROKEN[fault]
    file = tmp_path / "broken.safetensors"
    weights = breaks(_matrices(own_pipeline, {"unet": ("to_q",)}, 1))
    save_file({key: tensor.contiguous() for key, tensor in weights.items()}, file)
    with pytest.raises(LoraLoadError) as refusal:
        engine.load_lora(name, "broken", source=str(file))
    message = str(refusal.value)
    assert message.startswith(f"LoRA 'broken' cannot be loaded: {file}: ")
    assert problem in message
    assert "\n" not in message


def test_a_pickle_is_refused(engine: Engine, name: str, tmp_path: Path) -> None:
    torch.save({"unet.to_q.lora_A.weight": torch.ones(2, 2)}, tmp_path / "broken.bin")
    with pytest.raises(LoraLoadError, match=r"broken.bin: it is a pickle, and only safetensors are loaded"):
        engine.load_lora(name, "broken", source=str(tmp_path / "broken.bin"))


def test_a_lora_is_found_in_its_folder_and_refused_where_it_is_not(
    engine: Engine, name: str, files: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(LoraLoadError, match=r"has 0 \.safetensors files, and must be or have one"):
        engine.load_lora(name, "found", source=str(tmp_path))
    (tmp_path / "pytorch_lora_weights.safetensors").write_bytes(files["ink"].read_bytes())
    engine.load_lora(name, "found", source=str(tmp_path))
    with pytest.raises(LoraLoadError, match="one of that name is loaded already"):
        engine.load_lora(name, "found", source=str(tmp_path))


def test_a_lora_for_a_model_that_is_not_loaded_is_refused(engine: Engine, files: dict[str, Path]) -> None:
    with pytest.raises(UnknownModel, match="model 'huge' is not loaded"):
        engine.load_lora("huge", "ink", source=str(files["ink"]))
