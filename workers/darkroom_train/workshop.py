"""The stages of a recipe, each with what it reads and what it leaves in the output folder. Knows no mathematics.

Every stage goes on from its checkpoint, and does nothing when it is finished.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from darkroom_engine.families.sd import StableDiffusion
from darkroom_engine.quiet import quiet
from darkroom_train.adapter import FILE_NAME
from darkroom_train.autoencoder import AutoencoderTraining, encode, fold_scale
from darkroom_train.data import draw_labeled, fill_stores
from darkroom_train.denoiser import DenoiserTraining, build_noise_scheduler
from darkroom_train.distill import Distillation
from darkroom_train.errors import RecipeError, StageMissing
from darkroom_train.group import Group
from darkroom_train.latents import LatentStore, count_latents, encode_store, load_latents
from darkroom_train.recipe import Recipe, Training
from darkroom_train.recognizer import Recognizer, RecognizerTraining, encode_labels, labels_of
from darkroom_train.sampling import Order, Sampling, generate
from darkroom_train.sheet import contact_sheet, save_sheet
from darkroom_train.store import PictureStore, count_pictures
from darkroom_train.text_encoder import TextEncoderTraining
from darkroom_train.tokenizer import load_tokenizer, save_tokenizer, token_ids, train_tokenizer
from darkroom_train.training import CHECKPOINT, Show, Trainee, is_finished, load_checkpoint, train

TRAINED = ("autoencoder", "text-encoder", "denoiser", "distill", "recognizer")
NUM_SCALE_PICTURES = 512
NUM_SAMPLES = 12


def _silent(step: int, num_steps: int, values: Mapping[str, float], /) -> None:
    """Show nothing."""


@dataclass(frozen=True)
class Conditions:
    """With whom, on what and how long a run works. `minutes` ends a stage early, with a checkpoint to go on from."""

    group: Group
    processes: int = 1
    minutes: float | None = None
    checkpoint_minutes: float = 5.0
    skip_bad: bool = False
    show: Show = field(default=_silent)
    say: Callable[[str], None] = field(default=lambda sentence: None)


class Workshop:
    """A recipe at work in its output folder."""

    def __init__(self, recipe: Recipe, recipe_path: Path, folder: Path, conditions: Conditions) -> None:
        self.recipe = recipe
        self.folder = folder
        self._conditions = conditions
        self.device = conditions.group.device
        self.is_first = conditions.group.is_first
        self.say = conditions.say
        self._group = conditions.group
        self.recipe_path = folder / "recipe.toml"
        if self._group.is_first and recipe_path.resolve() != self.recipe_path.resolve():
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(recipe_path, self.recipe_path)

    def data(self) -> bool:
        """Draw or read the pictures."""
        if self._group.is_first:
            self._fill_stores()
        self._group.wait()
        return True

    def tokenizer(self) -> bool:
        """Learn the words of the captions."""
        if self._group.is_first and not (self.folder / "tokenizer").exists():
            self._learn_words()
        self._group.wait()
        return True

    def autoencoder(self) -> bool:
        """Train the autoencoder, bring its latents to unit variance, and encode all pictures with it."""
        recipe = self.recipe.autoencoder
        store, held_out = self._store("train"), self._store("held-out")
        num_pictures = min(recipe.num_pictures, len(store))
        trainee = AutoencoderTraining(
            recipe,
            seed=self.recipe.seed,
            pictures=self._pictures(store, num_pictures),
            held_out=self._pictures(held_out, min(128, len(held_out))),
            group=self._group,
        )
        if not self._train(trainee, recipe, "autoencoder"):
            return False
        if self._group.is_first:
            some = self._pictures(store, min(NUM_SCALE_PICTURES, num_pictures))
            with torch.no_grad():
                latents = torch.cat([encode(trainee.autoencoder, batch) for batch in some.split(64)])
            fold_scale(trainee.autoencoder, latents)
            trainee.autoencoder.save_pretrained(self.folder / "autoencoder" / "model")
        self._group.wait()
        return True

    def latents(self) -> None:
        """Encode all pictures and captions, once."""
        for part in ("held-out", "train"):
            path = self.folder / "latents" / f"{part}.safetensors"
            if 0 < count_pictures(self.folder / "data" / part) == count_latents(path):
                continue
            store = self._store(part)
            self.say(f"encoding {len(store)} pictures")
            autoencoder = self.load_autoencoder().to(self.device)
            threads = self._conditions.processes
            encode_store(store, autoencoder, self.load_tokenizer(), device=self.device, threads=threads).save(path)

    def text_encoder(self) -> bool:
        """Train the text tower."""
        trainee = TextEncoderTraining(
            self.recipe.text_encoder,
            seed=self.recipe.seed,
            tokenizer=self.load_tokenizer(),
            latents=self._latents("train"),
            held_out=self._latents("held-out"),
            group=self._group,
        )
        if not self._train(trainee, self.recipe.text_encoder, "text-encoder"):
            return False
        if self._group.is_first:
            with quiet():
                trainee.text_encoder.save_pretrained(self.folder / "text-encoder" / "model")
        self._group.wait()
        return True

    def denoiser(self) -> bool:
        """Train the denoiser, and leave its averaged weights."""
        trainee = self.denoiser_training()
        is_done = self._train(trainee, self.recipe.denoiser, "denoiser")
        if self._group.is_first:
            self._leave_denoiser(trainee.averaged_unet(), "denoiser")
        self._group.wait()
        return is_done

    def distill(self) -> bool:
        """Teach a copy of the denoiser to need few steps, and leave its averaged weights.

        Where the recipe asks for a LoRA, its adapter is left too.
        """
        tokenizer = self.load_tokenizer()
        trainee = Distillation(
            self.recipe.distill,
            seed=self.recipe.seed,
            teacher=self.load_denoiser("denoiser"),
            prediction=self.recipe.denoiser.prediction,
            text_encoder=self.load_text_encoder(),
            empty=torch.tensor(token_ids(tokenizer, [""])[0]),
            latents=self._latents("train"),
            group=self._group,
            sampling=partial(self._draw_samples, "distill"),
        )
        is_done = self._train(trainee, self.recipe.distill, "distill")
        if self._group.is_first:
            self._leave_denoiser(trainee.averaged_unet(), "distill")
            if self.recipe.distill.lora_rank:
                trainee.save_adapter(self.folder / "distill" / "lora" / FILE_NAME)
        self._group.wait()
        return is_done

    def recognizer(self) -> bool:
        """Train the judge on drawn pictures of a seed of its own, no combination withheld."""
        if self.recipe.data.source != "drawn":
            raise RecipeError(self.recipe_path, None, "only drawn pictures have labels to recognize")
        recipe = self.recipe.recognizer
        pictures, labels = self._labeled(recipe.num_pictures, first=0)
        held_out = self._labeled(512, first=recipe.num_pictures)
        trainee = RecognizerTraining(
            recipe, seed=self.recipe.seed, pictures=pictures, labels=labels, held_out=held_out, group=self._group
        )
        return self._train(trainee, recipe, "recognizer")

    def denoiser_training(self) -> DenoiserTraining:
        """Put together what the denoiser stage trains. Raises StageMissing."""
        tokenizer = self.load_tokenizer()
        return DenoiserTraining(
            self.recipe.denoiser,
            seed=self.recipe.seed,
            text_encoder=self.load_text_encoder(),
            empty=torch.tensor(token_ids(tokenizer, [""])[0]),
            latents=self._latents("train"),
            held_out=self._latents("held-out"),
            group=self._group,
            sampling=partial(self._draw_samples, "denoiser"),
        )

    def pipeline(self, stage: str = "denoiser") -> StableDiffusionPipeline:
        """Put the trained parts together, in float32; `stage` is whose UNet: "denoiser" or "distill".

        Raises StageMissing.
        """
        return self._assemble(self.load_denoiser(stage))

    def load_denoiser(self, stage: str) -> UNet2DConditionModel:
        """Read the UNet of a stage. Raises StageMissing."""
        return UNet2DConditionModel.from_pretrained(self._finished(stage, "model"), local_files_only=True)

    def sampling_of(self, stage: str) -> Sampling:
        """Say how pictures are drawn with the UNet of a stage."""
        evaluation = self.recipe.evaluate
        if stage == "distill":
            return Sampling(evaluation.num_distilled_steps, "lcm", 1.0)
        return Sampling(evaluation.num_inference_steps, evaluation.sampler, evaluation.guidance_scale)

    def load_autoencoder(self) -> AutoencoderTiny:
        """Read the trained autoencoder. Raises StageMissing."""
        path = self._finished("autoencoder", "model")
        with quiet():
            return AutoencoderTiny.from_pretrained(path, local_files_only=True).eval().requires_grad_(False)

    def load_tokenizer(self) -> CLIPTokenizer:
        """Read the tokenizer. Raises StageMissing."""
        return load_tokenizer(self._finished("tokenizer", ""))

    def load_text_encoder(self) -> CLIPTextModel:
        """Read the trained text tower. Raises StageMissing."""
        with quiet():
            return CLIPTextModel.from_pretrained(self._finished("text-encoder", "model"), local_files_only=True)

    def load_recognizer(self) -> Recognizer:
        """Read the trained judge. Raises StageMissing."""
        path = self._finished("recognizer", CHECKPOINT)
        recognizer = Recognizer(self.recipe.recognizer.width)
        recognizer.load_state_dict(load_checkpoint(path)["trainee"]["recognizer"])
        return recognizer.to(self.device)

    def training_captions(self) -> set[str]:
        """Give every caption that was trained on."""
        return {caption for several in self._store("train").captions for caption in several}

    def held_out_captions(self, most: int) -> list[str]:
        """Give captions that were not trained on, one a picture."""
        return [several[0] for several in self._store("held-out").captions[:most]]

    def _fill_stores(self) -> None:
        show = self._conditions.show
        skipped = fill_stores(
            self.recipe,
            self.folder / "data",
            processes=self._conditions.processes,
            skip_bad=self._conditions.skip_bad,
            report=lambda done, total: show(done, total, {}),
        )
        for problem in skipped:
            self.say(f"skipped: {problem}")
        if skipped:
            self.say(f"{len(skipped)} pictures were skipped")

    def _learn_words(self) -> None:
        tokens = self.recipe.tokenizer
        captions = (caption for several in self._store("train").captions for caption in several)
        trained = train_tokenizer(captions, vocabulary=tokens.vocabulary, max_length=tokens.max_length)
        save_tokenizer(trained, self.folder / "tokenizer")

    def _leave_denoiser(self, unet: UNet2DConditionModel, stage: str) -> None:
        """Put a UNet where evaluation and export find it; they may run while training goes on."""
        folder = self.folder / stage / "model"
        beside = folder.with_name(".model.new")
        unet.save_pretrained(beside)
        shutil.rmtree(folder, ignore_errors=True)
        beside.replace(folder)

    def _draw_samples(self, stage: str, unet: UNet2DConditionModel, number: int) -> None:
        """Leave the UNet, and a sheet of held-out captions, always with the same noise, so that sheets compare."""
        self._leave_denoiser(unet, stage)
        captions = self.held_out_captions(NUM_SAMPLES)
        orders = [Order(caption, seed, self.sampling_of(stage)) for seed, caption in enumerate(captions)]
        model = StableDiffusion(self._assemble(unet), self.device)
        pictures = generate(model, orders, side=self.recipe.data.size, device=self.device)
        sheet = contact_sheet(pictures, columns=6, captions=captions)
        save_sheet(sheet, self.folder / stage / "samples" / f"step-{number:08}.png")

    def _assemble(self, unet: UNet2DConditionModel) -> StableDiffusionPipeline:
        with quiet():
            return StableDiffusionPipeline(
                unet=unet,
                vae=self.load_autoencoder(),
                text_encoder=self.load_text_encoder(),
                tokenizer=self.load_tokenizer(),
                scheduler=build_noise_scheduler(self.recipe.denoiser.prediction),
                safety_checker=None,
                feature_extractor=None,
                requires_safety_checker=False,
            )

    def _train(self, trainee: Trainee, schedule: Training, stage: str) -> bool:
        folder = self.folder / stage
        if is_finished(folder):
            trainee.load_state_dict(load_checkpoint(folder / CHECKPOINT)["trainee"])
            self.say(f"{stage} is finished already")
            return True
        return train(
            trainee,
            schedule,
            folder,
            group=self._group,
            minutes=self._conditions.minutes,
            checkpoint_minutes=self._conditions.checkpoint_minutes,
            show=self._conditions.show,
        )

    def _store(self, part: str) -> PictureStore:
        return PictureStore(self.folder / "data" / part)

    def _pictures(self, store: PictureStore, num_pictures: int) -> torch.Tensor:
        return torch.from_numpy(store.pictures(0, num_pictures, threads=self._conditions.processes)).to(self.device)

    def _latents(self, part: str) -> LatentStore:
        if self._group.is_first:
            self.latents()
        self._group.wait()
        return load_latents(self.folder / "latents" / f"{part}.safetensors", self.device)

    def _labeled(self, num_pictures: int, *, first: int) -> tuple[torch.Tensor, torch.Tensor]:
        drawn = draw_labeled(self.recipe, num_pictures, first=first, processes=self._conditions.processes)
        labels = encode_labels([labels_of(scene) for scene in drawn.scenes])
        return torch.from_numpy(drawn.pictures).to(self.device), labels.to(self.device)

    def _finished(self, stage: str, name: str) -> Path:
        path = self.folder / stage / name
        if not path.exists():
            raise StageMissing(path, stage)
        return path


def state_of(workshop: Workshop) -> Mapping[str, Any]:
    """Say for each trained stage how far it is: steps, seconds, and whether it is finished."""
    state: dict[str, Any] = {}
    for stage in TRAINED:
        path = workshop.folder / stage / CHECKPOINT
        if path.exists():
            checkpoint = load_checkpoint(path)
            state[stage] = {key: checkpoint[key] for key in ("step", "spent", "is_finished")}
    return state
