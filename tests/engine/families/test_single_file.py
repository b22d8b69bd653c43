"""Checkpoints in one file: the model is that of the folder, and what is wrong with a file is said in one sentence."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, UNet2DConditionModel
from diffusers.loaders.single_file_utils import infer_diffusers_model_type
from original_layout import Tensors, tensors_of
from safetensors.torch import save_file
from tiny_pipelines import autoencoder, fill, stable_diffusion, stable_diffusion_xl
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from darkroom_engine import Engine, Handle, ModelLoadError, Request
from darkroom_engine.families.clip_tokenizer import clip_tokenizer
from darkroom_engine.families.sd import StableDiffusion
from darkroom_engine.families.sdxl import StableDiffusionXL
from darkroom_engine.families.single_file import CONFIGS, SingleFile
from darkroom_engine.quiet import quiet

FAMILIES = {"sd-1": StableDiffusion, "sd-2": StableDiffusion, "sdxl": StableDiffusionXL}
TURBO = {"modelspec.title": "SDXL Turbo"}


def _text_encoder(number: int, *, has_projection: bool) -> Any:
    config = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=32,
        intermediate_size=37,
        projection_dim=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        bos_token_id=49406,
        eos_token_id=49407,
        pad_token_id=49407,
    )
    with torch.random.fork_rng(devices=[]):
        model = (CLIPTextModelWithProjection if has_projection else CLIPTextModel)(config)
    fill(model.eval().requires_grad_(False), number)
    return model


def _vae() -> Any:
    with torch.random.fork_rng(devices=[]):
        vae = autoencoder(shift_factor=None, scaling_factor=0.2, use_quant_conv=True, use_post_quant_conv=True)
    fill(vae.eval().requires_grad_(False), 5)
    return vae


def build(layout: str, **config: Any) -> DiffusionPipeline:
    """A tiny pipeline whose tokenizers are CLIP's own."""
    if layout == "sdxl":
        pipeline = stable_diffusion_xl(**config)
        pipeline.register_modules(
            text_encoder_2=_text_encoder(8, has_projection=True), tokenizer_2=clip_tokenizer(pad_token="!")
        )
    else:
        pipeline = stable_diffusion(use_linear_projection=layout == "sd-2", **config)
    pad_token = "!" if layout == "sd-2" else "<|endoftext|>"
    pipeline.register_modules(
        text_encoder=_text_encoder(7, has_projection=False), tokenizer=clip_tokenizer(pad_token=pad_token), vae=_vae()
    )
    return pipeline


@pytest.fixture(scope="module", params=FAMILIES)
def layout(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def pipeline(layout: str) -> DiffusionPipeline:
    return build(layout)


@pytest.fixture(scope="module")
def configs(pipeline: DiffusionPipeline, layout: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ships with us for the full-sized models, for this tiny one."""
    folder = tmp_path_factory.mktemp("configs")
    (folder / layout).mkdir()
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        if model := getattr(pipeline, part, None):
            config = model.config.to_dict() if part.startswith("text") else dict(model.config)
            said = {option: value for option, value in config.items() if not option.startswith("_")}
            (folder / layout / f"{part}.json").write_text(json.dumps(said))
    scheduler = (CONFIGS / layout / "scheduler.json").read_text()
    (folder / layout / "scheduler.json").write_text(scheduler)
    return folder


@pytest.fixture
def tensors(pipeline: DiffusionPipeline, layout: str) -> Tensors:
    return tensors_of(pipeline, layout)


Load = Callable[..., Any]


@pytest.fixture
def load(layout: str, configs: Path, tmp_path: Path) -> Load:
    """Writes tensors into a file and loads the pipeline from it."""

    def load_file(tensors: Tensors, *, metadata: dict[str, str] | None = None, name: str = "model.safetensors") -> Any:
        path = tmp_path / name
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path, metadata=metadata)
        return SingleFile("mine", path, configs=configs).load_pipeline(FAMILIES[layout], torch.float32)

    return load_file


def test_a_picture_from_the_file_is_that_from_the_folder(
    pipeline: DiffusionPipeline,
    layout: str,
    tensors: Tensors,
    load: Load,
    tmp_path: Path,
    develop: Callable[..., list[Handle]],
) -> None:
    loaded = load(tensors)
    pipeline.scheduler = loaded.scheduler
    with quiet():
        pipeline.save_pretrained(tmp_path / "folder")
    engine = Engine("cpu", num_threads=1)
    engine.load("folder", source=str(tmp_path / "folder"))
    engine.add("file", FAMILIES[layout](loaded, torch.device("cpu")), source="file")
    pictures = [
        handle.result(0).image
        for name in ("folder", "file")
        for handle in develop(
            engine,
            Request(
                model=name,
                prompt="a lighthouse, oil on canvas!",
                negative_prompt="people",
                width=32,
                height=32,
                num_inference_steps=2,
                guidance_scale=3.0,
                sampler="euler",
                seed=1,
            ),
        )
    ]
    engine.stop()
    assert pictures[0].std() > 10
    assert np.array_equal(*pictures)


def test_a_file_is_loaded_in_the_dtype_that_is_asked_for(
    tensors: Tensors, layout: str, configs: Path, tmp_path: Path
) -> None:
    path = tmp_path / "half.safetensors"
    save_file({key: tensor.to(torch.float16).contiguous() for key, tensor in tensors.items()}, path)
    loaded = SingleFile("mine", path, configs=configs).load_pipeline(FAMILIES[layout], torch.bfloat16)
    assert {part.dtype for part in (loaded.unet, loaded.vae, loaded.text_encoder)} == {torch.bfloat16}


def test_what_the_denoiser_predicts_is_read_from_the_file(tensors: Tensors, load: Load) -> None:
    mark = {"v_pred": torch.ones(())}
    predictions = [
        loaded.scheduler.config.prediction_type
        for loaded in (
            load(tensors),
            load(tensors | mark),
            load(tensors, metadata={"modelspec.prediction_type": "v"}),
            load(tensors | mark, metadata={"modelspec.prediction_type": "epsilon"}),
        )
    ]
    assert predictions == ["epsilon", "v_prediction", "v_prediction", "epsilon"]


def test_a_file_that_predicts_something_unknown_is_refused(tensors: Tensors, load: Load) -> None:
    with pytest.raises(ModelLoadError, match=r"says that it predicts 'x0', and known are \['epsilon', 'v'\]"):
        load(tensors, metadata={"modelspec.prediction_type": "x0"})


@pytest.mark.parametrize("spread", [0.01, 0.2])
def test_stable_diffusion_2_says_by_its_weights_what_it_predicts(
    tensors: Tensors, layout: str, load: Load, monkeypatch: pytest.MonkeyPatch, spread: float
) -> None:
    # The tiny UNet has fewer blocks than the one in which this bias is looked up.
    key = "model.diffusion_model.output_blocks.0.1.transformer_blocks.0.norm1.bias"
    monkeypatch.setattr("darkroom_engine.families.single_file.V_BIAS", key)
    bias = spread * torch.tensor([1.0, -1.0]).repeat(len(tensors[key]) // 2)
    is_v = spread > 0.1 and layout == "sd-2"
    prediction = load(tensors | {key: bias}).scheduler.config.prediction_type
    assert prediction == ("v_prediction" if is_v else "epsilon")


def test_a_model_distilled_for_few_steps_begins_where_the_noise_is_greatest(tensors: Tensors, load: Load) -> None:
    spacings = [
        loaded.scheduler.config.timestep_spacing
        for loaded in (load(tensors), load(tensors, metadata=TURBO), load(tensors, name="sdxl_lightning.safetensors"))
    ]
    assert spacings == ["leading", "trailing", "trailing"]


def test_a_unet_made_for_inpainting_is_known_by_its_shape(
    layout: str, tensors: Tensors, load: Load, pipeline: DiffusionPipeline
) -> None:
    key = "model.diffusion_model.input_blocks.0.0.weight"
    wide = torch.randn((len(tensors[key]), 9, 3, 3))
    family = FAMILIES[layout](load(tensors | {key: wide}), torch.device("cpu"))
    assert family.unet.config.in_channels == 9
    assert family.unet.conv_in.weight.equal(wide)


def _drop(prefix: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if not key.startswith(prefix)}


ONE = torch.ones(())
CONV_OUT = "model.diffusion_model.out.2.weight"
BROKEN: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "no unet": (_drop("model.diffusion_model."), "it has no unet: nothing in it begins with 'model.diffusion_model.'"),
    "no vae": (_drop("first_stage_model."), "it has no vae: nothing in it begins with 'first_stage_model.'"),
    "no text encoder": (
        lambda tensors: _drop("cond")(tensors),
        "it has no text encoder that Stable Diffusion 1, 2 or XL would have",
    ),
    "half a unet": (_drop("model.diffusion_model.middle_block"), "of the unet's weights, among them mid_block."),
    "one weight gone": (_drop(CONV_OUT), "it lacks 1 of the unet's weights, among them conv_out.weight"),
    "wrong shape": (
        lambda tensors: tensors | {CONV_OUT: torch.ones(3, 32, 3, 3)},
        "conv_out.weight of the unet has the shape (3, 32, 3, 3), and ",
    ),
    "foreign weight": (
        lambda tensors: tensors | {"model.diffusion_model.input_blocks.1.1.odd.weight": ONE},
        "it has down_blocks.0.attentions.0.odd.weight, which no unet of ",
    ),
    "refiner": (lambda tensors: tensors | {"conditioner.embedders.0.model.logit_scale": ONE}, "it is a refiner"),
    "ControlNet": (lambda tensors: {"control_model.input_hint_block.0.weight": ONE}, "it is a ControlNet"),
    "LoRA": (lambda tensors: {"lora_unet_mid_block.lora_up.weight": ONE}, "it is a LoRA"),
    "Flux": (lambda tensors: {"model.diffusion_model.double_blocks.0.img_attn.proj.bias": ONE}, "it is Flux"),
    "nothing": (lambda tensors: {"weight": ONE}, "it has no text encoder that"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_file_is_refused_in_one_sentence(tensors: Tensors, load: Load, tmp_path: Path, fault: str) -> None:
    breaks, problem = BROKEN[fault]
    with pytest.raises(ModelLoadError) as refusal:
        load(breaks(tensors))
    message = str(refusal.value)
    assert message.startswith(f"model 'mine' cannot be loaded: {tmp_path / 'model.safetensors'}: ")
    assert problem in message
    assert "\n" not in message


def test_pickles_and_garbage_are_refused_by_the_engine(tmp_path: Path) -> None:
    engine = Engine("cpu")
    torch.save({"state_dict": {}}, tmp_path / "model.ckpt")
    (tmp_path / "model.safetensors").write_bytes(b"no")
    for name, problem in (
        ("model.ckpt", "it is a pickle, and only safetensors are loaded"),
        ("model.safetensors", "it is broken: "),
    ):
        with pytest.raises(ModelLoadError) as refusal:
            engine.load("mine", source=str(tmp_path / name))
        assert str(refusal.value).startswith(f"model 'mine' cannot be loaded: {tmp_path / name}: {problem}")
    engine.stop()


def test_a_file_of_another_family_than_the_caller_holds_it_for_is_refused(tmp_path: Path) -> None:
    prefixes = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer.")
    save_file({f"{prefix}x": torch.ones(1) for prefix in prefixes}, tmp_path / "model.safetensors")
    with pytest.raises(ModelLoadError, match=r"model\.safetensors is of family 'sd', and was to be 'sdxl'"):
        Engine("cpu").load("mine", "sdxl", source=str(tmp_path / "model.safetensors"))


# Keys of each original checkpoint, with shapes: diffusers tells the models apart by the first.
LANDMARKS: dict[str, tuple[str, int, dict[str, tuple[int, ...]]]] = {
    "sd-1": (
        "v1",
        686,
        {
            "model.diffusion_model.output_blocks.11.0.skip_connection.weight": (320, 640, 1, 1),
            "model.diffusion_model.middle_block.1.proj_in.weight": (1280, 1280, 1, 1),
            "first_stage_model.decoder.up.3.upsample.conv.weight": (512, 512, 3, 3),
            "cond_stage_model.transformer.text_model.encoder.layers.11.mlp.fc1.weight": (3072, 768),
        },
    ),
    "sd-2": (
        "v2",
        686,
        {
            "model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight": (320, 1024),
            "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias": (320,),
            "cond_stage_model.model.transformer.resblocks.22.attn.in_proj_weight": (3072, 1024),
        },
    ),
    "sdxl": (
        "xl_base",
        1680,
        {
            "conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias": (1280,),
            "conditioner.embedders.1.model.text_projection": (1280, 1280),
            "model.diffusion_model.label_emb.0.0.weight": (1280, 2816),
            "model.diffusion_model.input_blocks.8.1.transformer_blocks.9.ff.net.0.proj.weight": (10240, 1280),
            "model.diffusion_model.output_blocks.5.2.conv.weight": (640, 640, 3, 3),
        },
    ),
}


def _config(layout: str, part: str) -> Any:
    return json.loads((CONFIGS / layout / f"{part}.json").read_text())


@pytest.mark.parametrize("name", LANDMARKS)
def test_the_configs_that_ship_with_us_are_those_of_the_published_checkpoints(name: str) -> None:
    """Without memory: on the meta device."""
    model_type, num_unet_tensors, landmarks = LANDMARKS[name]
    with torch.device("meta"):
        parts = SimpleNamespace(
            unet=UNet2DConditionModel(**_config(name, "unet")),
            vae=AutoencoderKL(**_config(name, "vae")),
            text_encoder=CLIPTextModel(CLIPTextConfig(**_config(name, "text_encoder"))),
        )
        if name == "sdxl":
            parts.text_encoder_2 = CLIPTextModelWithProjection(CLIPTextConfig(**_config(name, "text_encoder_2")))
        tensors = tensors_of(parts, name)
    assert sum(key.startswith("model.diffusion_model.") for key in tensors) == num_unet_tensors
    assert {key: tuple(tensors[key].shape) for key in landmarks} == landmarks
    assert infer_diffusers_model_type(tensors) == model_type


def test_the_tokenizer_is_clips() -> None:
    tokenizer = clip_tokenizer(pad_token="<|endoftext|>")
    # The numbers are those of OpenAI's own tokenizer.
    astronaut = [49406, 320, 1125, 539, 550, 18376, 6765, 320, 4558, 49407]
    assert tokenizer("a photo of an astronaut riding a horse").input_ids == astronaut
    assert len(tokenizer) == 49408
    assert tokenizer("Don't  STOP\n42", padding="max_length").input_ids[:8] == [
        49406,
        847,
        713,
        1691,
        275,
        273,
        49407,
        49407,
    ]
