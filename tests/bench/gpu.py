"""What the engine does on one CUDA GPU, in under eight minutes: python tests/bench/gpu.py. Prints tables, keeps JSON.

Every ratio is of runs that were interleaved in one process. Speed is given as a share of what a plain matrix product
reached in the same run. Each section's results are written as soon as they are there.
"""

import argparse
import itertools
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[2] / "workers")]

import gpu_models
from tables import percentile, report

from darkroom_engine import Engine, Request, Tuning
from darkroom_engine.families.sd import StableDiffusion
from darkroom_engine.families.sdxl import StableDiffusionXL
from darkroom_engine.graphs import CudaRecorder, GraphedDenoise
from darkroom_engine.samplers import make_noise_scheduler

MODEL = "model"
GRAPHED = Tuning(cuda_graphs=True, channels_last=True)
SAMPLERS = ("euler", "euler_a", "ddim", "dpmpp_2m")
REPEATS = 3


@dataclass(frozen=True)
class Place:
    """Where and how large everything is measured."""

    device: torch.device
    dtype: torch.dtype
    tiny: bool
    matrix_flops: float = 0.0

    def side(self, pixels: int) -> int:
        return 64 if self.tiny else pixels

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, run: Callable[[], object], *, repeats: int = 5) -> float:
        """The median time of a run, after one that is not counted."""
        run()
        times = []
        for _ in range(repeats):
            self.wait()
            began = time.perf_counter()
            run()
            self.wait()
            times.append(time.perf_counter() - began)
        return statistics.median(times)


@dataclass(frozen=True)
class Subject:
    """A model at a size, as both diffusers and the engine run it."""

    name: str
    pipeline: Any
    family: Any
    side: int
    num_jobs: int


def matrix_flops(place: Place) -> float:
    """Measure operations a second of a large matrix product of random numbers."""
    size = 256 if place.tiny else 8192
    a, b = (torch.randn((size, size), device=place.device).to(place.dtype) for _ in range(2))
    return 2 * size**3 / place.seconds(lambda: a @ b, repeats=20)


# Batch curves


def unet_inputs(unet: Any, place: Place, side: int, rows: int) -> tuple[Tensor, Tensor, dict[str, Any]]:
    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, device=place.device).to(place.dtype)

    conditioning: dict[str, Any] = {"encoder_hidden_states": draw(rows, 77, unet.config.cross_attention_dim)}
    if unet.config.addition_embed_type == "text_time":
        time_width = 6 * unet.config.addition_time_embed_dim
        conditioning["text_embeds"] = draw(rows, unet.config.projection_class_embeddings_input_dim - time_width)
        conditioning["time_ids"] = draw(rows, 6)
    return draw(rows, 4, side // 8, side // 8), torch.full((rows,), 500.0, device=place.device), conditioning


def unet_denoise(unet: Any) -> Callable[[Tensor, Tensor, Mapping[str, Tensor]], Tensor]:
    def denoise(latents: Tensor, timesteps: Tensor, conditioning: Mapping[str, Tensor]) -> Tensor:
        added = {key: conditioning[key] for key in ("text_embeds", "time_ids") if key in conditioning}
        return unet(
            latents,
            timesteps,
            encoder_hidden_states=conditioning["encoder_hidden_states"],
            added_cond_kwargs=added or None,
            return_dict=False,
        )[0]

    return denoise


def sd3_inputs(transformer: Any, place: Place, side: int, rows: int) -> tuple[Tensor, Tensor, dict[str, Any]]:
    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, device=place.device).to(place.dtype)

    config = transformer.config
    conditioning = {
        "encoder_hidden_states": draw(rows, 154, config.joint_attention_dim),
        "pooled_projections": draw(rows, config.pooled_projection_dim),
    }
    return draw(rows, 16, side // 8, side // 8), torch.full((rows,), 500.0, device=place.device), conditioning


def sd3_denoise(transformer: Any) -> Callable[[Tensor, Tensor, Mapping[str, Tensor]], Tensor]:
    def denoise(latents: Tensor, timesteps: Tensor, conditioning: Mapping[str, Tensor]) -> Tensor:
        return transformer(hidden_states=latents, timestep=timesteps, **conditioning, return_dict=False)[0]

    return denoise


def batch_curve(place: Place, name: str, denoise: Any, inputs: Callable[[int], Any]) -> None:
    rows_of = (1, 2) if place.tiny else (1, 2, 4, 8, 16, 32)
    graphed = GraphedDenoise(denoise, CudaRecorder(place.device)) if place.device.type == "cuda" else None
    with FlopCounterMode(display=False) as counter:
        denoise(*inputs(1))
    flops = counter.get_total_flops()
    table: dict[str, dict[str, object]] = {}
    for rows in rows_of:
        given = inputs(rows)
        eager = place.seconds(lambda given=given: denoise(*given))
        row: dict[str, object] = {
            "eager_ms": round(eager * 1000, 2),
            "eager_share": _share(flops * rows / eager, place),
        }
        if graphed:
            replayed = place.seconds(lambda given=given: graphed(*given))
            row |= {"graph_ms": round(replayed * 1000, 2), "graph_share": _share(flops * rows / replayed, place)}
        table[f"{rows} rows"] = row
    report(f"gpu-curve-{name}", table)


def _share(flops: float, place: Place) -> float:
    return round(flops / place.matrix_flops, 3)


# The engine against diffusers


def jobs(subject: Subject, *, mixed: bool, number: int) -> list[Request]:
    draw = random.Random(7)
    return [
        Request(
            model=MODEL,
            prompt=f"a picture of thing {n}",
            width=subject.side,
            height=subject.side,
            num_inference_steps=draw.randint(10, 30) if mixed else 20,
            guidance_scale=draw.choice([1.0, 5.0, 7.5]) if mixed else 5.0,
            sampler=draw.choice(SAMPLERS) if mixed else "euler",
            seed=n,
        )
        for n in range(number)
    ]


def engine_for(subject: Subject, place: Place, tuning: Tuning) -> Engine:
    engine = Engine(str(place.device), 32)
    engine.add(MODEL, subject.family(subject.pipeline, place.device), source="random", tuning=tuning)
    engine.warm_up(MODEL, [(subject.side, subject.side)], seconds=20.0)
    engine.start()
    return engine


def run_engine(engine: Engine, requests: Sequence[Request]) -> None:
    for handle in [engine.submit(request) for request in requests]:
        handle.result(600)


def run_one_by_one(subject: Subject, requests: Sequence[Request]) -> list[float]:
    """Develop with diffusers' own pipeline, one job after the other; gives each one's seconds."""
    times = []
    for request in requests:
        began = time.perf_counter()
        _run_pipeline(subject, [request])
        times.append(time.perf_counter() - began)
    return times


def run_static_batches(subject: Subject, requests: Sequence[Request], size: int = 8) -> None:
    """Develop with diffusers, jobs of equal steps, sampler and guidance together, up to `size` at a time."""

    def alike(request: Request) -> tuple[Any, ...]:
        return (request.num_inference_steps, request.sampler, request.guidance_scale)

    for _, group in itertools.groupby(sorted(requests, key=alike), key=alike):
        together = list(group)
        for start in range(0, len(together), size):
            _run_pipeline(subject, together[start : start + size])


def _run_pipeline(subject: Subject, requests: Sequence[Request]) -> None:
    first = requests[0]
    pipeline = subject.pipeline
    config = gpu_models._noise_scheduler().config
    pipeline.scheduler = make_noise_scheduler(
        first.sampler, config, first.num_inference_steps, seed=first.seed, timing={}, num_skipped=0
    )
    pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    pipeline(
        [request.prompt for request in requests],
        width=first.width,
        height=first.height,
        num_inference_steps=first.num_inference_steps,
        guidance_scale=first.guidance_scale,
        generator=[torch.Generator().manual_seed(request.seed) for request in requests],
    )


def against_diffusers(subject: Subject, place: Place) -> None:
    """Mixed jobs and equal ones: the engine, one at a time, and in static batches, interleaved."""
    engine = engine_for(subject, place, GRAPHED if place.device.type == "cuda" else Tuning())
    table = {}
    for kind, mixed in (("mixed", True), ("equal", False)):
        requests = jobs(subject, mixed=mixed, number=subject.num_jobs)
        ways: dict[str, Callable[[], object]] = {
            "engine": lambda requests=requests: run_engine(engine, requests),
            "one by one": lambda requests=requests: run_one_by_one(subject, requests),
            "static batches of 8": lambda requests=requests: run_static_batches(subject, requests),
        }
        times: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(1 if place.tiny else REPEATS):
            for way, run in ways.items():
                began = time.perf_counter()
                run()
                place.wait()
                times[way].append(time.perf_counter() - began)
        ours = statistics.median(times["engine"])
        for way, seconds in times.items():
            median = statistics.median(seconds)
            table[f"{kind}, {way}"] = {
                "pictures_s": round(len(requests) / median, 3),
                "engine_is": round(median / ours, 2),
                "n": len(seconds),
            }
    engine.stop()
    report(f"gpu-against-diffusers-{subject.name}", table)


def open_loop(subject: Subject, place: Place, *, seconds: float) -> None:
    """Poisson arrivals at 0.8 of what one job at a time can do: our latencies, and those that its times would give."""
    engine = engine_for(subject, place, GRAPHED if place.device.type == "cuda" else Tuning())
    sample = jobs(subject, mixed=True, number=8)
    service = run_one_by_one(subject, sample)
    rate = 0.8 / statistics.mean(service)
    draw = random.Random(11)
    arrivals = list(itertools.accumulate(draw.expovariate(rate) for _ in range(max(8, int(seconds * rate)))))
    requests = [replace(sample[n % len(sample)], seed=1000 + n) for n in range(len(arrivals))]
    latencies: list[float] = []
    handles = []
    began = time.perf_counter()
    for arrival, request in zip(arrivals, requests, strict=True):
        time.sleep(max(0.0, began + arrival - time.perf_counter()))
        handle = engine.submit(request)
        due = began + arrival
        handle.add_done_callback(lambda _, due=due: latencies.append(time.perf_counter() - due))
        handles.append(handle)
    for handle in handles:
        handle.result(600)
    engine.stop()
    free_at, serial = 0.0, []
    for n, arrival in enumerate(arrivals):
        free_at = max(free_at, arrival) + service[n % len(service)]
        serial.append(free_at - arrival)
    report(
        f"gpu-open-loop-{subject.name}",
        {
            way: {f"p{share}_s": round(percentile(values, share / 100), 3) for share in (50, 95, 99)}
            for way, values in {"engine": latencies, "one by one": serial}.items()
        },
    )


def exact_pictures(subject: Subject, place: Place) -> None:
    """Whether pictures in exact mode are bit-equal alone and among others, and what the normal mode's difference is."""
    requests = jobs(subject, mixed=True, number=6)
    table = {}
    for kind, is_exact in (("exact", True), ("normal", False)):
        alone, together = [], []
        for group in (*([request] for request in requests), requests):
            engine = engine_for(subject, place, Tuning())
            handles = [engine.submit(replace(request, is_exact=is_exact)) for request in group]
            (together if len(group) > 1 else alone).extend(handle.result(600).image for handle in handles)
            engine.stop()
        differences = [int(np.abs(a.astype(int) - b).max()) for a, b in zip(alone, together, strict=True)]
        table[kind] = {"equal": sum(d == 0 for d in differences), "of": len(differences), "gray": max(differences)}
    report(f"gpu-exact-{subject.name}", table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="few channels and pixels: to try the benchmark itself")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    device = torch.device(options.device)
    place = Place(device, torch.bfloat16 if device.type == "cuda" else torch.float32, options.tiny)
    place = replace(place, matrix_flops=matrix_flops(place))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    report("gpu-device", {name: {"matrix_tflops": round(place.matrix_flops / 1e12, 1), "torch": torch.__version__}})

    small = gpu_models.sd15(device, place.dtype, tiny=options.tiny)
    large = gpu_models.sdxl(device, place.dtype, tiny=options.tiny)
    subjects = [
        Subject("sd15-512", small, StableDiffusion, place.side(512), 4 if options.tiny else 32),
        Subject("sdxl-512", large, StableDiffusionXL, place.side(512), 4 if options.tiny else 32),
        Subject("sdxl-1024", large, StableDiffusionXL, place.side(1024), 4 if options.tiny else 16),
    ]
    for subject in subjects:
        unet = subject.pipeline.unet
        batch_curve(
            place,
            subject.name,
            unet_denoise(unet),
            lambda rows, unet=unet, side=subject.side: unet_inputs(unet, place, side, rows),
        )
    for subject in subjects:
        against_diffusers(subject, place)
    open_loop(subjects[1], place, seconds=2.0 if options.tiny else 45.0)
    exact_pictures(subjects[0], place)
    del small, large, subjects
    transformer = gpu_models.sd3_medium(device, place.dtype, tiny=options.tiny)
    batch_curve(
        place,
        "sd3-medium-1024",
        sd3_denoise(transformer),
        lambda rows: sd3_inputs(transformer, place, place.side(1024), rows),
    )


if __name__ == "__main__":
    main()
