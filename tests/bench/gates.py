"""A gate's result by hand, for what only reads such results."""

from typing import Any

import numpy as np

from ddcat_bench.gate.disagreement import MARGINS
from ddcat_bench.gate.results import ClassEntry, GateResult, MarginRow, MemberRow, ThreatRow
from ddcat_bench.gate.thresholds import DEFAULT, read_thresholds
from ddcat_bench.gate.verdict import PROTOCOL
from ddcat_bench.result_schema import BundleEntry, CheckpointEntry, DataEntry, Environment
from ddcat_bench.timing.interleave import ratio, timing
from ddcat_bench.timing.results import SpeedEntry, SpeedRatio, SpeedResult
from ddcat_bench.timing.throughput import ThroughputResult, ThroughputRow

NAMES = tuple(f"{place:03}" for place in range(40))
ENVIRONMENT = Environment(
    machine={"processor": "a CPU", "cores": 2, "memory_gib": 8, "system": "Linux x86_64"},
    versions={"ddcat": "0.1.0"},
    git_commit="c" * 40,
    device="cpu",
    threads=1,
    seconds=60.0,
)
CHECKPOINT = CheckpointEntry(path="run", sha256="b" * 64, step=10, method="ddcat", architecture="pspnet", attack=None)


DATA = DataEntry(
    name="scenes", split="val", list_sha256="d" * 64, split_images=40, long_side=None, usual_split=True,
    classes=("sky", "pole"), names=NAMES,
)  # fmt: skip


def bundle_entry(name: str) -> BundleEntry:
    return BundleEntry(path=name, name=name, sha256="a" * 64, engine={"runtime": "onnxruntime 1.0", "threads": 1})


def speed_of(name: str, seconds: float, original: float = 1.0, main_branch: float = 0.5) -> SpeedResult:
    turns = {"engine": [seconds] * 10, "original": [original] * 10, "main branch": [main_branch] * 10}
    return SpeedResult(
        bundle=bundle_entry(name),
        checkpoint=CHECKPOINT,
        engine_bytes=2**20,
        parameter_bytes=2**20,
        boundary="From images to labels.",
        memory="Peak memory.",
        inputs="noise",
        batch=1,
        height=4,
        width=5,
        threads=1,
        warm_up=3,
        contenders=tuple(SpeedEntry(name=n, times=timing(t), peak_memory=2**27) for n, t in turns.items()),  # type: ignore[arg-type]
        ratios=(SpeedRatio(baseline="original", **dict(ratio(turns["original"], turns["engine"]))),),
        load_before=0.0,
        load_after=0.0,
        others=0.0,
        environment=ENVIRONMENT,
    )


def cost_row(batch: int, height: int, width: int, seconds: float) -> ThroughputRow:
    return ThroughputRow(
        batch=batch, height=height, width=width, times=timing([seconds] * 10), images_per_second=batch / seconds, of_peak=0.5
    )


def threat(name: str, reference: float, engine: float, margin: float) -> ThreatRow:
    difference = engine - reference
    return ThreatRow(
        name=name,
        epsilon=0.0 if name == "clean" else 0.03,
        members=("replay: BIM, n = 3",),
        reference=reference,
        engine=engine,
        difference=difference,
        interval=(difference - 0.02, difference + 0.02),
        by_block={},
        class_iou=((reference, engine), (None, None)),
        margin=margin,
        verdict="pass",
        reason="within the margin",
    )


def made_gate(name: str = "model", *, seconds: float = 0.1, attacked: float = 28.0, **others: Any) -> GateResult:
    """Give the result of an engine so quick and so robust."""
    margins = tuple(
        MarginRow(lowest=low, pixels=pixels, differing=1) for low, pixels in zip(MARGINS, np.arange(1, 8).tolist(), strict=True)
    )
    member = MemberRow(
        source="replay",
        label="BIM, n = 3",
        epsilon=0.03,
        images=40,
        reference=28.0,
        engine=attacked,
        agreement=0.99,
        twin_agreement=1.0,
        band_agreement=0.9,
        interior_agreement=1.0,
        margins=margins,
    )
    made = GateResult(
        bundle=bundle_entry(name),
        checkpoint=CHECKPOINT,
        data=DATA,
        precision="fp32",
        budget="default",
        protocol=PROTOCOL,
        drawn="images",
        verdict="pass",
        findings=(),
        limits=read_thresholds(DEFAULT, "fp32"),
        threats=(
            threat("clean", 38.0, 38.0, 0.05),
            threat("BIM, n = 3", 29.0, 29.0, 0.1),
            threat("strongest at 8/255", 28.0, attacked, 0.1),
        ),
        members=(member.model_copy(update={"label": "clean", "epsilon": 0.0}), member),
        classes=(ClassEntry(name="sky", share=0.995), ClassEntry(name="pole", share=0.005)),
        transferred=False,
        alarms=(),
        probe=None,
        speed=speed_of(name, seconds),
        cost=ThroughputResult(
            threads=1,
            matrix_product_peak=1e9,
            batches=(cost_row(1, 4, 5, 0.1), cost_row(2, 4, 5, 0.15)),
            sizes=(cost_row(1, 4, 5, 0.1), cost_row(1, 8, 10, 0.4), cost_row(1, 16, 20, 1.6)),
            others=0.0,
        ),
        environment=ENVIRONMENT,
    )
    return made.model_copy(update=others)


def near(speed: SpeedResult, **others: Any) -> SpeedResult:
    """As if single turns had been slower than the limit of fp32 allows, and quartiles had not."""
    ratio = speed.ratios[0].model_copy(update={"lowest": 0.9, "lower_quartile": 2.0, "median": 2.1, "upper_quartile": 2.2})
    return speed.model_copy(update={"ratios": (ratio,), **others})


def turns(speed: SpeedResult, *shares: float) -> SpeedResult:
    """As if the engine had taken these shares of PyTorch's time, turn by turn."""
    own = [share * 0.1 for share in shares]
    found = SpeedRatio(baseline="original", **dict(ratio([0.1] * len(own), own)))
    contenders = tuple(
        entry.model_copy(update={"times": timing(own if entry.name == "engine" else [0.1] * len(own))})
        for entry in speed.contenders
    )
    return speed.model_copy(update={"ratios": (found,), "contenders": contenders})
