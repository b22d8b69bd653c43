"""The `darkroom-train` command. Each command reads its words, makes one call and prints; it imports what it needs."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from darkroom_train.errors import TrainError

if TYPE_CHECKING:
    from darkroom_train.workshop import Conditions, Workshop

NUM_EXAMPLES = 4

# The words of `lora` that its recipe has by the same name.
LORA_WORDS = (
    *("model", "folder", "resolution", "steps", "batch_size", "gradient_accumulation", "learning_rate", "rank"),
    *("caption_dropout", "guidance_scale", "precision", "seed"),
)


class _Commands(click.Group):
    """Commands whose expected errors are one sentence on stderr and exit status 1."""

    def invoke(self, ctx: click.Context) -> Any:
        from darkroom_engine.errors import EngineError

        try:
            return super().invoke(ctx)
        except (TrainError, EngineError) as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def main() -> None:
    """Train a Stable Diffusion of your own, stage by stage, from a recipe.

    `darkroom-train all --recipe laptop --output my-model` does everything; what it leaves in my-model/model loads in
    Darkroom and in diffusers. A stage that was stopped goes on where it was.
    """


def _stage(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that all stages have."""
    named = click.option(
        "--recipe", "recipe_name", required=True, help="A TOML file, or the name of one that comes along."
    )
    drawn = click.option(
        "--processes", type=click.IntRange(1, 256), default=1, show_default=True, help="Processes that draw."
    )
    return named(drawn(_training(function)))


def _training(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of everything that trains."""
    options = [
        click.option(
            "--output", type=click.Path(file_okay=False, path_type=Path), required=True, help="Where everything goes."
        ),
        click.option("--device", default="auto", show_default=True, help="cpu, cuda, mps, or auto."),
        click.option("--threads", type=click.IntRange(1, 256), help="Threads of torch.  [default: torch's own]"),
        click.option(
            "--minutes", type=click.FloatRange(min=0.01), help="Stop each stage after so long, to go on later."
        ),
        click.option(
            "--checkpoint-minutes", type=click.FloatRange(min=0.01), default=5.0, show_default=True, help="How often."
        ),
        click.option("--skip-bad", is_flag=True, help="Leave out pictures that cannot be used, and count them."),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def _drawing(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of everything that draws figures from one starting noise."""
    options = [
        click.option(
            "--seed", type=click.IntRange(0), default=7, show_default=True, help="Of the noise that all begin with."
        ),
        click.option("--size", type=click.IntRange(8, 4096), default=256, show_default=True, help="Sides, in pixels."),
        click.option("--steps", type=click.IntRange(1, 1000), default=20, show_default=True, help="Denoising steps."),
        click.option("--guidance-scale", type=click.FloatRange(1.0, 30.0), default=3.0, show_default=True),
        click.option("--sampler", default="euler", show_default=True),
        click.option("--device", default="auto", show_default=True, help="cpu, cuda, mps, or auto."),
    ]
    for option in reversed(options):
        function = option(function)
    return function


@main.command()
@_stage
def data(**words: Any) -> None:
    """Draw the scenes, or read the folder of captioned pictures."""
    _run(words, "data")


@main.command()
@_stage
def tokenizer(**words: Any) -> None:
    """Learn the words of the captions."""
    _run(words, "tokenizer")


@main.command()
@_stage
def autoencoder(**words: Any) -> None:
    """Learn to shrink pictures to latents and to enlarge them again."""
    _run(words, "autoencoder")


@main.command("text-encoder")
@_stage
def text_encoder(**words: Any) -> None:
    """Learn which caption belongs to which picture: CLIP."""
    _run(words, "text-encoder")


@main.command()
@_stage
def denoiser(**words: Any) -> None:
    """Learn to take noise away, steered by the captions."""
    _run(words, "denoiser")


@main.command()
@_stage
def distill(**words: Any) -> None:
    """Teach a copy of the denoiser to draw in few steps without guidance, sampled with "lcm".

    With lora_rank in the recipe's [distill], the copy's difference is also left as a LoRA, in distill/lora.
    """
    _run(words, "distill")


@main.command()
@_stage
def recognizer(**words: Any) -> None:
    """Train the judge of the evaluation, on drawn pictures."""
    _run(words, "recognizer")


@main.command()
@_stage
@click.option("--steps", type=click.IntRange(1, 1000), help="Denoising steps.  [default: the recipe's]")
@click.option("--distilled", is_flag=True, help="Score the distilled model.")
def evaluate(*, steps: int | None, distilled: bool, **words: Any) -> None:
    """Score held-out prompts, and print the table."""
    _evaluate(_workshop(words), stage="distill" if distilled else "denoiser", steps=steps)


@main.command()
@_stage
@click.option("--distilled", is_flag=True, help="Export the distilled model, to model-distilled.")
def export(*, distilled: bool, **words: Any) -> None:
    """Write the model as a diffusers folder, with its manifest and its card."""
    _export(_workshop(words), stage="distill" if distilled else "denoiser")


@main.command("all")
@_stage
def everything(**words: Any) -> None:
    """Run every stage of a recipe but distill."""
    workshop = _workshop(words)
    stages = ["data", "tokenizer", "autoencoder", "text-encoder", "denoiser"]
    is_drawn = workshop.recipe.data.source == "drawn"
    for stage in [*stages, *(["recognizer"] if is_drawn else [])]:
        if not _finishes(workshop, stage):
            return
    if not workshop.is_first:
        return
    if is_drawn:
        _evaluate(workshop, stage="denoiser", steps=None)
    _export(workshop, stage="denoiser")


@main.command()
@_training
@click.option("--model", required=True, help="What is fine-tuned: a folder or file of family sd, sdxl or flux.")
@click.option("--pictures", "folder", required=True, help="A folder of pictures with a metadata.jsonl.")
@click.option("--resolution", type=click.IntRange(32, 4096), default=512, show_default=True, help="Sides, in pixels.")
@click.option("--steps", type=click.IntRange(1), default=1000, show_default=True)
@click.option("--batch-size", type=click.IntRange(1), default=1, show_default=True)
@click.option("--gradient-accumulation", type=click.IntRange(1), default=1, show_default=True, help="Batches a step.")
@click.option("--learning-rate", type=click.FloatRange(1e-7, 1.0), default=1e-4, show_default=True)
@click.option("--rank", type=click.IntRange(1, 1024), default=8, show_default=True)
@click.option("--alpha", type=click.IntRange(1), help="Weight of the adapter times its rank.  [default: rank]")
@click.option("--target-module", "target_modules", multiple=True, help="Ending of the names of modules that learn.")
@click.option("--caption-dropout", type=click.FloatRange(0.0, 1.0), default=0.1, show_default=True)
@click.option("--guidance-scale", type=click.FloatRange(1.0, 30.0), default=3.5, show_default=True)
@click.option("--precision", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True)
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=1, show_default=True)
def lora(**words: Any) -> None:
    """Fine-tune a LoRA adapter on a folder of captioned pictures.

    Leaves OUTPUT/pytorch_lora_weights.safetensors, which Darkroom and diffusers load, samples on the way, and a log.
    """
    conditions = _conditions(words, processes=1)
    from darkroom_train.adapter import ATTENTION
    from darkroom_train.lora import LoraRecipe, fine_tune

    asked = {name: words[name] for name in LORA_WORDS}
    recipe = LoraRecipe(
        **asked, alpha=words["alpha"] or words["rank"], target_modules=words["target_modules"] or ATTENTION
    )
    is_finished = fine_tune(recipe, words["output"], conditions)
    click.echo(f"the adapter is in {words['output']}" if is_finished else "run the same command again to go on")


@main.command()
@click.option("--model", required=True, help="A folder with a model, or what else the engine loads.")
@click.option("--prompt", "prompts", multiple=True, required=True, help="May be given several times.")
@_drawing
@click.option("--frames", type=click.IntRange(2, 100), default=8, show_default=True, help="In each strip.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), default="walk.png", show_default=True)
def walk(*, model: str, prompts: tuple[str, ...], device: str, output: Path, **words: Any) -> None:
    """Same noise, different words: draw a strip of frames from noise to picture for each prompt."""
    from darkroom_engine import Engine
    from darkroom_train.sheet import save_sheet
    from darkroom_train.walk import MODEL, Walking, strip, walks

    walking = Walking(num_inference_steps=words.pop("steps"), num_frames=words.pop("frames"), **words)
    engine = Engine(_device(device))
    engine.load(MODEL, source=model)
    save_sheet(strip(walks(engine, prompts, walking), prompts, walking), output)
    click.echo(output)


@main.command()
@click.option("--model", required=True, help="A folder with a model of family sd, or shipped:<name>.")
@click.option("--prompt", "prompts", multiple=True, required=True, help="Several, each with more words than the last.")
@_drawing
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), default="lesson", show_default=True)
def lesson(*, model: str, prompts: tuple[str, ...], device: str, output: Path, **words: Any) -> None:
    """Draw what each part of a model does: noise, denoiser, latents, words, guidance and steps, a figure each."""
    from darkroom_engine.device import open_device
    from darkroom_engine.models import load_model
    from darkroom_train.lesson import Example, Lesson
    from darkroom_train.sampling import Sampling
    from darkroom_train.sheet import save_sheet

    opened = open_device(_device(device))
    loaded = load_model("lesson", None, source=model, revision=None, dtype=None, device=opened)
    sampling = Sampling(words["steps"], words["sampler"], words["guidance_scale"])
    example = Example(prompts=prompts, seed=words["seed"], size=words["size"], sampling=sampling)
    for name, figure in Lesson(loaded, example, opened).figures():
        save_sheet(figure, output / f"{name}.webp")
        click.echo(output / f"{name}.webp")


@main.command()
@click.argument("log", type=click.Path(exists=True, path_type=Path))
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), default="plot.png", show_default=True)
def plot(log: Path, output: Path) -> None:
    """Draw LOG, a stage's log.jsonl or its folder, as a picture."""
    from darkroom_train.plot import plot_log
    from darkroom_train.training import LOG

    plot_log(log / LOG if log.is_dir() else log).save(output)
    click.echo(output)


@main.command()
@click.option("--domain", default="full", show_default=True, help="Whose scenes.")
@click.option("--size", type=click.IntRange(32, 1024), default=128, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--count", type=click.IntRange(1, 1000), default=48, show_default=True)
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), default="scenes.png", show_default=True)
def scenes(domain: str, size: int, seed: int, count: int, output: Path) -> None:
    """Draw a contact sheet of the training scenes with their captions."""
    from darkroom_train.captions import caption
    from darkroom_train.drawing import draw
    from darkroom_train.scenes import get_domain, sample_scene
    from darkroom_train.sheet import contact_sheet, save_sheet

    chosen = [sample_scene(get_domain(domain), seed, index) for index in range(count)]
    captions = [caption(scene, index) for index, scene in enumerate(chosen)]
    save_sheet(contact_sheet([draw(scene, size) for scene in chosen], columns=8, captions=captions), output)
    click.echo(output)


def _workshop(words: Mapping[str, Any]) -> "Workshop":
    from darkroom_train.recipe import find_recipe, read_recipe

    path = find_recipe(words["recipe_name"])
    recipe = read_recipe(path)
    conditions = _conditions(words, processes=words["processes"])
    from darkroom_train.workshop import Workshop

    return Workshop(recipe, path, words["output"], conditions)


def _conditions(words: Mapping[str, Any], *, processes: int) -> "Conditions":
    import torch

    from darkroom_engine.device import open_device
    from darkroom_engine.quiet import quiet
    from darkroom_train.group import join_group
    from darkroom_train.progress import Bar

    with quiet():  # they speak of what is not installed
        from darkroom_train.workshop import Conditions

    device = open_device(_device(words["device"]))
    if device.type == "cuda":
        # What training leaves in float32 does not need all its bits, and is eight times as fast with fewer.
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
    if words["threads"]:
        torch.set_num_threads(words["threads"])
    group = click.get_current_context().with_resource(join_group(device))
    return Conditions(
        group=group,
        processes=processes,
        minutes=words["minutes"],
        checkpoint_minutes=words["checkpoint_minutes"],
        skip_bad=words["skip_bad"],
        show=Bar(),
        say=click.echo if group.is_first else _keep_silent,
    )


def _keep_silent(sentence: str) -> None:
    """Let the first process speak."""


def _device(name: str) -> str:
    import torch

    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def _run(words: Mapping[str, Any], stage: str) -> None:
    _finishes(_workshop(words), stage)


def _finishes(workshop: "Workshop", stage: str) -> bool:
    """Run a stage, and say when there is more to do."""
    run: Callable[[], bool] = getattr(workshop, stage.replace("-", "_"))
    workshop.say(f"{stage}:")
    is_finished = run()
    if not is_finished:
        workshop.say(f"{stage} is not finished: run the same command again to go on")
    return is_finished


def _evaluate(workshop: "Workshop", *, stage: str, steps: int | None) -> None:
    from darkroom_train.evaluate import Evaluation, format_report

    folder = _evaluation_folder(workshop, stage, steps)
    report = Evaluation(workshop, workshop.device).run(folder, stage=stage, num_inference_steps=steps)
    click.echo(format_report(report))


def _export(workshop: "Workshop", *, stage: str) -> None:
    from darkroom_train.card import model_card
    from darkroom_train.export import export_model, write_card, write_offer
    from darkroom_train.workshop import state_of

    folder = workshop.folder / ("model" if stage == "denoiser" else "model-distilled")
    export_model(workshop.pipeline(stage), folder)
    examples = workshop.held_out_captions(NUM_EXAMPLES)
    write_offer(folder, workshop.recipe, workshop.sampling_of(stage), example_prompts=examples)
    evaluation = _evaluation_folder(workshop, stage, None)
    card = model_card(workshop.recipe, workshop.recipe_path, state=state_of(workshop), evaluation=evaluation)
    write_card(folder, card)
    click.echo(f"the model is in {folder}")


def _evaluation_folder(workshop: "Workshop", stage: str, steps: int | None) -> Path:
    name = "evaluation" if stage == "denoiser" else "evaluation-distilled"
    return workshop.folder / (name if steps is None else f"{name}-{steps}-steps")
