"""The engine on a CPU: one table, with the batch curve first, for it is the ceiling of all that follows.

A UNet bound by dispatch stands for a GPU bound by kernel launches; torch has one thread. What is compared is measured
in turns, in one run, and the middle of the rounds counts.
"""

import gc
import io
import itertools
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from policies import CoalescingWindow, OneAtATime, Policy, StaticBatching, StepModeOfVllmOmni
from tables import percentile, report
from torch import Generator, Tensor

from darkroom_engine import Engine, Handle, Request
from darkroom_engine.batch import Development, StepOutcome
from darkroom_engine.costs import ForwardCost
from darkroom_engine.families import seeded
from darkroom_engine.families.sd import StableDiffusion
from darkroom_engine.scheduler import Scheduler

pytestmark = [
    pytest.mark.bench,
    pytest.mark.timeout(900),
    # diffusers hands tensors to numpy the way that numpy 2 deprecates.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

NUM_ROUNDS = 5
MAX_ROWS = 8
SIZE = 64
NUM_TOKENS = 16
COUNTS = (1, 2, 3, 4, 6, 8, 12, 16)
NOISE_SCHEDULERS: Mapping[str, Any] = {
    "euler": EulerDiscreteScheduler,
    "euler_a": EulerAncestralDiscreteScheduler,
    "ddim": DDIMScheduler,
    "dpmpp_2m": DPMSolverMultistepScheduler,
}
LOAD = 0.7
UPLOAD_SECONDS = 0.1

Rows = dict[str, dict[str, object]]
Way = TypeVar("Way")


class TimedDiffusion(StableDiffusion):
    """Adds up the seconds that its forwards take, so that the rest of a step can be told from them."""

    forward_seconds = 0.0

    def denoise(self, latents: Tensor, timesteps: Tensor, conditioning: Mapping[str, Tensor]) -> Tensor:
        began_at = time.perf_counter()
        prediction = super().denoise(latents, timesteps, conditioning)
        self.forward_seconds += time.perf_counter() - began_at
        return prediction


@pytest.fixture(scope="module")
def rows() -> Iterator[Rows]:
    """What the benchmarks found, one row each: printed and kept when the last has ended."""
    found: Rows = {}
    yield found
    report("engine", found)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionPipeline:
    """The seeded model with a UNet of 2.6 million weights: many small layers, so that a row more costs little."""
    pipeline = seeded.build(7)
    generator = Generator().manual_seed(7)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32, 64, 96),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=4,
        cross_attention_dim=pipeline.text_encoder.config.hidden_size,
        norm_num_groups=8,
        use_linear_projection=True,
    )
    for name, parameter in unet.named_parameters():
        if parameter.ndim < 2:
            torch.nn.init.constant_(parameter, float("norm" in name and name.endswith("weight")))
        else:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5, generator=generator)
    pipeline.unet = unet.eval().requires_grad_(False)
    pipeline.tokenizer.model_max_length = NUM_TOKENS
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def model(pipeline: StableDiffusionPipeline) -> TimedDiffusion:
    return TimedDiffusion(pipeline, torch.device("cpu"))


@pytest.fixture(scope="module")
def curve(model: TimedDiffusion) -> dict[int, float]:
    """Seconds of a forward, by its rows: the middle of 15, taken in turns."""
    ways = {count: partial(run_forwards, model, count, 1) for count in COUNTS}
    return {count: statistics.median(seconds) for count, seconds in in_turns(ways, num_rounds=15).items()}


@torch.inference_mode()
def run_forwards(model: TimedDiffusion, num_rows: int, num_forwards: int) -> None:
    """Run so many forwards, and nothing else."""
    generator = Generator().manual_seed(1)
    latents = torch.randn(num_rows, 4, SIZE // 8, SIZE // 8, generator=generator)
    timesteps = torch.rand(num_rows, generator=generator) * 999
    embeds = torch.randn(num_rows, NUM_TOKENS, seeded.TEXT_WIDTH, generator=generator)
    for _ in range(num_forwards):
        model.denoise(latents, timesteps, {"encoder_hidden_states": embeds})


@pytest.fixture(scope="module")
def make_engine(model: TimedDiffusion) -> Iterator[Callable[..., Engine]]:
    engines: list[Engine] = []

    def make(policy: Policy | None = None, *, max_rows: int = MAX_ROWS) -> Engine:
        engine = Engine("cpu", max_rows, num_threads=1)
        engine.add("tiny", model, source="seeded:7")
        engine.warm_up("tiny", [(SIZE, SIZE)], seconds=2)
        if policy is not None:
            engine._scheduler = policy  # type: ignore[assignment]
        engines.append(engine)
        return engine

    yield make
    for engine in engines:
        engine.stop()


def in_turns(ways: Mapping[Way, Callable[[], object]], *, num_rounds: int) -> dict[Way, list[float]]:
    """Time each way once a round, after a round that does not count."""
    seconds: dict[Way, list[float]] = {way: [] for way in ways}
    for number in range(num_rounds + 1):
        for way, run in ways.items():
            gc.collect()
            began_at = time.perf_counter()
            run()
            if number:
                seconds[way].append(time.perf_counter() - began_at)
    return seconds


def request(seed: int, **fields: Any) -> Request:
    defaults: dict[str, Any] = {
        "model": "tiny",
        "prompt": f"boat {seed}",
        "width": SIZE,
        "height": SIZE,
        "num_inference_steps": 20,
        "guidance_scale": 3.0,
        "sampler": "euler",
        "seed": seed,
    }
    return Request(**(defaults | fields))


def mixed_requests() -> list[Request]:
    """32 of 4 to 30 steps, three guidance scales and four samplers."""
    draw = random.Random(11)
    return [
        request(
            seed,
            num_inference_steps=draw.randint(4, 30),
            guidance_scale=draw.choice([1.0, 3.0, 7.5]),
            sampler=draw.choice(list(NOISE_SCHEDULERS)),
        )
        for seed in range(32)
    ]


def develop(engine: Engine, requests: Sequence[Request]) -> list[Handle]:
    handles = [engine.submit(each) for each in requests]
    while engine.step():
        pass
    for handle in handles:
        handle.result(0)
    return handles


def develop_with_pipeline(pipeline: StableDiffusionPipeline, requests: Sequence[Request]) -> None:
    """Serve one at a time with diffusers' own pipeline, as a worker without an engine does."""
    config = pipeline.scheduler.config
    for each in requests:
        pipeline.scheduler = NOISE_SCHEDULERS[each.sampler].from_config(config)
        pipeline(
            each.prompt,
            width=each.width,
            height=each.height,
            num_inference_steps=each.num_inference_steps,
            guidance_scale=each.guidance_scale,
            generator=Generator().manual_seed(each.seed),
            output_type="np",
        )


def num_row_steps(requests: Sequence[Request]) -> int:
    return sum(each.num_inference_steps * (2 if each.guidance_scale > 1 else 1) for each in requests)


def row(value: object, bar: str, **more: object) -> dict[str, object]:
    return {"value": value, "bar": bar, **more}


def ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """Of two that were measured in turns: the middle of the rounds' ratios."""
    return round(statistics.median(a / b for a, b in zip(slow, fast, strict=True)), 2)


def test_batch_curve(rows: Rows, curve: dict[int, float]) -> None:
    for count, seconds in curve.items():
        bar = "<= 1.7" if count == MAX_ROWS else ""
        rows[f"forward of {count} rows, over one row"] = row(
            round(seconds / curve[1], 2), bar, ms=round(seconds * 1000, 2)
        )


def test_mixed_jobs(rows: Rows, make_engine: Callable[..., Engine], pipeline: StableDiffusionPipeline) -> None:
    requests = mixed_requests()
    engines = {
        "engine": make_engine(),
        "exact": make_engine(),
        "static": make_engine(StaticBatching(MAX_ROWS)),
        "window": make_engine(CoalescingWindow(MAX_ROWS)),
        "vllm-omni": make_engine(StepModeOfVllmOmni(MAX_ROWS)),
    }
    numbers = itertools.count()

    def new(*, is_exact: bool = False) -> list[Request]:
        """The same with new words, so that no prompt is known from a round before."""
        number = next(numbers)
        return [replace(each, prompt=f"{number} {each.prompt}", is_exact=is_exact) for each in requests]

    ways: dict[str, Callable[[], object]] = {
        name: (lambda name=name, engine=engine: develop(engine, new(is_exact=name == "exact")))
        for name, engine in engines.items()
    }
    ways["pipeline"] = lambda: develop_with_pipeline(pipeline, new())
    seconds = in_turns(ways, num_rounds=NUM_ROUNDS)
    ours = seconds["engine"]
    for name, what, bar in [
        ("pipeline", "32 mixed jobs: StableDiffusionPipeline one at a time, over engine", ">= 2.5"),
        ("static", "32 mixed jobs: static batching, over engine", ">= 1.5"),
        ("window", "32 mixed jobs: coalescing window, over engine", ">= 1.5"),
        ("vllm-omni", "32 mixed jobs: vLLM-Omni's step-mode rules, over engine", "reported"),
        ("exact", "32 mixed jobs: exact mode, over normal mode", "reported"),
    ]:
        rows[what] = row(ratio(seconds[name], ours), bar, s=round(statistics.median(seconds[name]), 2))


def test_share_of_what_the_batch_curve_allows(
    rows: Rows, curve: dict[int, float], make_engine: Callable[..., Engine], model: TimedDiffusion
) -> None:
    """As many forwards as the jobs need with every row in use, in turns with the jobs, for no two moments are alike."""
    best_rows = max((count for count in COUNTS if count <= MAX_ROWS), key=lambda count: count / curve[count])
    num_forwards = round(num_row_steps(mixed_requests()) / best_rows)
    engine = make_engine()
    numbers = itertools.count()

    def jobs() -> None:
        number = next(numbers)
        develop(engine, [replace(each, prompt=f"{number} {each.prompt}") for each in mixed_requests()])

    seconds = in_turns(
        {"forwards": partial(run_forwards, model, best_rows, num_forwards), "jobs": jobs}, num_rounds=2 * NUM_ROUNDS
    )
    shares = [ideal / ours for ideal, ours in zip(seconds["forwards"], seconds["jobs"], strict=True)]
    rows["32 mixed jobs: share of what the batch curve allows"] = row(
        f"{statistics.median(shares):.0%}",
        ">= 85%",
        s=round(statistics.median(seconds["jobs"]), 2),
        worst=f"{min(shares):.0%}",
        n=len(shares),
    )


def test_steps_waited_before_the_first_step(rows: Rows, curve: dict[int, float]) -> None:
    """The scheduler alone, on the measured curve's clock: thousands of arrivals, and no forward to wait for."""
    mean_row_steps = num_row_steps(mixed_requests()) / len(mixed_requests())
    best_rate = max(count / curve[count] for count in COUNTS if count <= MAX_ROWS)
    lone_rate = 1 / statistics.mean(
        each.num_inference_steps * curve[2 if each.guidance_scale > 1 else 1] for each in mixed_requests()
    )
    scheduler = Scheduler(MAX_ROWS)
    for count, seconds in curve.items():
        for _ in range(2):
            scheduler.costs.record(ForwardCost("a", count, seconds))
    ours = steps_waited(scheduler, curve, arrivals_per_second=LOAD * best_rate / mean_row_steps)
    serial = steps_waited(OneAtATime(MAX_ROWS), curve, arrivals_per_second=LOAD * lone_rate)
    p99, p99_serial = percentile(ours, 0.99), percentile(serial, 0.99)
    rows["steps waited before the first, Poisson at 70 % load, p99"] = row(
        p99, "<= 2", p50=statistics.median(ours), worst=max(ours), n=len(ours)
    )
    rows["the same one at a time (70 % of its own capacity), over engine"] = row(
        round(p99_serial / max(p99, 1), 1), ">= 10", p50=statistics.median(serial), worst=max(serial), n=len(serial)
    )


def steps_waited(
    policy: Scheduler | Policy, curve: Mapping[int, float], *, arrivals_per_second: float, num_requests: int = 3000
) -> list[float]:
    """How many forwards began between each request's arrival and its own first one."""
    draw = random.Random(3)
    shapes = mixed_requests()
    now, began_at, next_at, num_arrived, num_forwards = 0.0, 0.0, 0.0, 0, 0
    arrived_at: dict[Development, int] = {}
    waited: list[float] = []
    while len(waited) < num_requests:
        while next_at <= now and num_arrived < num_requests:
            development = without_tensors(draw.choice(shapes))
            policy.add(development)
            # The forward that runs when the request comes is one to wait for.
            arrived_at[development] = num_forwards - (next_at > began_at)
            num_arrived += 1
            next_at += draw.expovariate(arrivals_per_second)
        batch = policy.schedule()
        if batch is None:
            now = began_at = next_at
            continue
        waited += [float(num_forwards - arrived_at.pop(one)) for one in batch.developments if one in arrived_at]
        num_forwards += 1
        began_at = now
        now += interpolated(curve, batch.num_rows)
        for one in batch.developments:
            one.step += 1
        policy.update(batch, StepOutcome(denoised=[one for one in batch.developments if not one.num_steps_left]))
    return waited


def without_tensors(each: Request) -> Development:
    nothing: Any = None
    return Development(
        request=each,
        handle=Handle(each, each.num_inference_steps),
        batch_key="a",
        num_rows=2 if each.guidance_scale > 1 else 1,
        noise_scheduler=nothing,
        timesteps=nothing,
        step_arguments={},
        generator=nothing,
    )


def interpolated(curve: Mapping[int, float], num_rows: int) -> float:
    few = max(count for count in curve if count <= num_rows)
    many = min(count for count in curve if count >= num_rows)
    share = (num_rows - few) / (many - few) if many > few else 0.0
    return curve[few] + share * (curve[many] - curve[few])


def test_a_short_job_behind_long_ones(rows: Rows, make_engine: Callable[..., Engine]) -> None:
    engine = make_engine()
    short = request(1, num_inference_steps=4)

    def alone() -> None:
        handle = engine.submit(short)
        while not handle.done:
            engine.step()

    seconds: dict[str, list[float]] = {"alone": [], "behind": []}
    for number in range(NUM_ROUNDS + 1):
        began_at = time.perf_counter()
        alone()
        seconds["alone"].append(time.perf_counter() - began_at)
        long = [engine.submit(request(seed, num_inference_steps=50)) for seed in range(2, 10)]
        for _ in range(12):
            engine.step()
        began_at = time.perf_counter()
        alone()
        seconds["behind"].append(time.perf_counter() - began_at)
        for handle in long:
            handle.cancel()
        while engine.step():
            pass
        if not number:
            seconds = {name: [] for name in seconds}
    rows["a 4-step job behind eight 50-step jobs, over alone"] = row(
        ratio(seconds["behind"], seconds["alone"]), "<= 2.5"
    )


def test_cancel(rows: Rows, make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(max_rows=2)
    num_steps: list[int] = []
    for number in range(20):
        canceled = engine.submit(request(1, num_inference_steps=8))
        for _ in range(1 + number % 5):
            engine.step()
        canceled.cancel()
        waiting = engine.submit(request(2, num_inference_steps=8))
        num_steps.append(0)
        while not waiting.progress.step:
            engine.step()
            num_steps[-1] += 1
        while engine.step():
            pass
    rows["steps from cancel to another request in the row, worst of 20"] = row(max(num_steps), "<= 1")


def test_overlapped_output(rows: Rows, make_engine: Callable[..., Engine]) -> None:
    """Encode and upload (a pause of 100 ms) on the engine's thread, or in a pool while it goes on."""
    requests = [request(seed, num_inference_steps=20) for seed in range(16)]

    def upload(handle: Handle) -> None:
        Image.fromarray(handle.result(0).image).save(io.BytesIO(), "png", compress_level=1)
        time.sleep(UPLOAD_SECONDS)

    def inline() -> None:
        handles = [engine.submit(each) for each in requests]
        for handle in handles:
            handle.add_done_callback(upload)
        for handle in handles:
            handle.result(60)

    def overlapped() -> None:
        handles = [engine.submit(each) for each in requests]
        uploads = []
        with ThreadPoolExecutor(4) as pool:
            for handle in handles:
                handle.add_done_callback(lambda handle: uploads.append(pool.submit(upload, handle)))
            for handle in handles:
                handle.result(60)
        for done in uploads:
            done.result()

    engine = make_engine()
    engine.start()
    seconds = in_turns({"inline": inline, "overlapped": overlapped}, num_rounds=NUM_ROUNDS)
    engine.stop()
    rows["16 jobs with 100 ms uploads: inline, over overlapped"] = row(
        ratio(seconds["inline"], seconds["overlapped"]), ">= 1.4", s=round(statistics.median(seconds["overlapped"]), 2)
    )


@pytest.mark.parametrize("num_requests", [1, 8, 16])
def test_host_time_of_a_step(
    rows: Rows, make_engine: Callable[..., Engine], model: TimedDiffusion, num_requests: int
) -> None:
    engine = make_engine(max_rows=2 * num_requests)
    samplers = list(NOISE_SCHEDULERS)
    seconds = []
    handles = [
        engine.submit(request(seed, num_inference_steps=60, sampler=samplers[seed % 4])) for seed in range(num_requests)
    ]
    engine._scheduler.costs = NoCosts()
    for number in range(55):
        before, began_at = model.forward_seconds, time.perf_counter()
        engine.step()
        beyond = time.perf_counter() - began_at - (model.forward_seconds - before)
        if number >= 5:  # the first encode
            seconds.append(beyond)
    for handle in handles:
        assert handle.progress.step == 55
        handle.cancel()
    engine.step()
    bar = 0.3 + 0.03 * num_requests
    rows[f"ms of a step beyond its forward, {num_requests} requests"] = row(
        round(statistics.median(seconds) * 1000, 2), f"<= {bar:.2f}", worst=round(max(seconds) * 1000, 2)
    )


class NoCosts:
    """Has every row run, so that as many requests are stepped as there are."""

    def record(self, cost: ForwardCost) -> None:
        """Learn nothing."""

    def seconds(self, batch_key: object, num_rows: int) -> None:
        """Know nothing."""

    def rows_worth_running(self, batch_key: object, num_rows: int) -> int:
        """All of them."""
        return num_rows


def test_prompt_cache(rows: Rows, make_engine: Callable[..., Engine]) -> None:
    engine = make_engine()
    encode: dict[str, list[float]] = {"miss": [], "hit": []}
    for number in range(10 * NUM_ROUNDS):
        for name in encode:
            [handle] = develop(engine, [request(1, num_inference_steps=1, prompt=f"cat {number}")])
            encode[name].append(handle.result(0).timings["encode"])
    rows["encode of a new prompt, over a cached one"] = row(
        ratio(encode["miss"], encode["hit"]),
        "reported",
        miss_ms=round(statistics.median(encode["miss"]) * 1000, 2),
        hit_ms=round(statistics.median(encode["hit"]) * 1000, 2),
    )


@pytest.mark.parametrize(("dtype", "bar"), [("float32", "<= 1e-4"), ("bfloat16", "reported")])
def test_difference_from_a_lone_run(rows: Rows, pipeline: StableDiffusionPipeline, dtype: str, bar: str) -> None:
    """Normal mode: the latents of 12 mixed jobs together, against each of them alone, as a share of their range."""
    copy = StableDiffusionPipeline(
        **{name: part for name, part in pipeline.components.items() if name not in ("unet", "text_encoder", "vae")},
        **{name: clone(pipeline.components[name], dtype) for name in ("unet", "text_encoder", "vae")},
        requires_safety_checker=False,
    )
    model = StableDiffusion(copy, torch.device("cpu"))
    requests = mixed_requests()[:12]
    together = last_latents(model, requests)
    worst = 0.0
    for number, each in enumerate(requests):
        [alone] = last_latents(model, [each])
        worst = max(worst, float((together[number] - alone).abs().max() / (alone.max() - alone.min())))
    assert math.isfinite(worst)
    rows[f"latents in a batch against alone, {dtype}, share of their range, worst of 12"] = row(f"{worst:.1e}", bar)


def clone(part: Any, dtype: str) -> Any:
    fresh = type(part)(part.config) if hasattr(part.config, "to_diff_dict") else type(part).from_config(part.config)
    fresh.load_state_dict(part.state_dict())
    return fresh.to(getattr(torch, dtype))


def last_latents(model: StableDiffusion, requests: Sequence[Request]) -> list[Tensor]:
    engine = Engine("cpu", MAX_ROWS, num_threads=1)
    engine.add("tiny", model, source="seeded:7")
    for each in requests:
        engine.submit(each)
    engine._take_in()
    developments = engine._scheduler.developments
    while engine.step():
        pass
    engine.stop()
    return [development.latents.float() for development in developments if development.latents is not None]
