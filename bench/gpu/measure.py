"""
All that only a GPU can show, in one command: run it until it says that nothing is left.

    python bench/gpu/measure.py --camvid DIR --pretrained resnet50.safetensors

On a machine with a GPU, and ddcat installed with the extras `bench`, `export` and `gpu`, and `rtx` for plans of TensorRT for
RTX. Each call is a slice of at most 9 minutes; the next one goes on where it ended, with exit status 3 while there is more to
do. What matters most comes first, so that four slices have it: the training step beside the baselines; engines beside PyTorch,
and five rebuilds of each; PSPNet-50 on CamVid, undefended, by PGD-AT and by DDC-AT, under the paper's attack. Then the
other training steps, SAT and `torch.compile`. A training that had its minutes is evaluated as it is.

`resnet50.safetensors` holds the initial weights of the backbone, made with `ddcat data import-checkpoint`. Everything is done
by commands that are printed before they run. The results are in OUT, and OUT/progress.md says what became of each command.
`--rehearse` goes through all of it on a CPU, with toy networks and generated scenes.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from bench.gpu.slices import Task, progress_markdown, run_slice
from bench.paper.train_step_report import train_steps_markdown
from bench.paper.train_step_results import TrainStepResult
from ddcat.atomic_files import write_text
from ddcat.cli_support import run
from ddcat_bench.attack.report import attack_lines, columns, run_names
from ddcat_bench.attack.results import AttackResult
from ddcat_bench.markdown import data_line, number, table
from ddcat_bench.result_io import read_result

MODES = {  # precision of our step beside the baselines in fp32
    "fp32": ["--precision", "fp32", "--no-tf32"],
    "fp32-tf32": ["--precision", "fp32", "--tf32"],
    "bf16": ["--precision", "bf16", "--no-tf32"],
    "bf16-tf32": ["--precision", "bf16", "--tf32"],
}
FIRST = [("voc-pspnet50-ddcat", mode) for mode in ("fp32", "fp32-tf32", "bf16")]
LATER = [
    ("voc-pspnet50-ddcat", "bf16-tf32"),
    *((f"voc-{name}", mode) for name in ("pspnet50-sat", "deeplabv3_50-ddcat", "deeplabv3_50-sat") for mode in MODES),
]
ENGINES = ("trt-fp32", "trt-fp16", "ort-fp32", "trt-rtx-fp32", "ort-fp16", "trt-int8", "trt-rtx-fp16")
METHODS = {"undefended": 3.0, "pgd-at": 5.0, "ddcat": 6.0, "sat": 6.0}  # and the minutes of its training
# 480 x 360, the size of CamVid's own files in the layout that is read; crops of 8 n + 1, as in the paper
FULL = ("data.long_side=null", "augment.crop=[353, 473]", "model.backbone=resnet50", "model.output_stride=8")
HERE = Path(__file__).parent
STEP = HERE.parent / "paper/train_step.py"
SLICE = 9.0  # minutes


def main() -> None:
    """Run a slice, and write the tables of what there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu"), help="folder of the results (default: gpu)")
    parser.add_argument("--camvid", type=Path, help="folder of CamVid; without it the training is left out")
    parser.add_argument("--pretrained", type=Path, help="initial weights of ResNet-50; random ones by default")
    parser.add_argument("--epochs", type=int, default=30, help="of each training on CamVid (default: 30)")
    parser.add_argument("--batch", type=int, default=16, help="images in a training step that is timed (default: 16)")
    parser.add_argument("--minutes", type=float, default=SLICE, help=f"of this slice (default: {SLICE:g})")
    parser.add_argument("--rehearse", action="store_true", help="go through all of it on a CPU, with toy networks")
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    tasks = rehearsal(out) if arguments.rehearse else measurements(arguments)
    finished = run_slice(tasks, out / "progress.json", minutes=arguments.minutes)
    write_text(out / "progress.md", progress_markdown(tasks, out / "progress.json"))
    steps = [read_result(file, TrainStepResult) for file in sorted(out.glob("train-step/*/train-step.json"))]
    if steps:
        write_text(out / "train-step.md", train_steps_markdown(steps))
    attacks = [file for method in METHODS if (file := out / "attacks" / method / "attack.json").exists()]
    if attacks:
        write_text(out / "attacks.md", attacks_markdown([read_result(file, AttackResult) for file in attacks]))
    print(f"{out}: {', '.join(sorted(file.name for file in out.glob('*.md')))}")
    if not finished:
        print("there is more to do: run it again")
        raise SystemExit(3)


def measurements(arguments: argparse.Namespace) -> list[Task]:
    """List what is measured on a GPU, the most important first."""
    out: Path = arguments.out
    timed = ["--batch", arguments.batch, "--repeats", 20, "--device", "cuda"]
    first, later = ([step_task(out, preset, mode, timed) for preset, mode in steps] for steps in (FIRST, LATER))
    graph = out / "pspnet50.safetensors"
    engines = [
        Task(graph, ("python", HERE.parent / "cpu/random_checkpoint.py", "voc-pspnet50-undefended", graph)),
        *(engine_task(out, graph, name, ["--size", "473x473"]) for name in ENGINES),
    ]
    trainings: list[list[Task]] = []
    if arguments.camvid:
        chosen = [*FULL, "train.precision=bf16", "train.workers=8", f"train.epochs={arguments.epochs}"]
        chosen += [f"model.pretrained={arguments.pretrained}"] if arguments.pretrained else []
        trainings = [training(out, f"camvid-{name}", arguments.camvid, name, chosen, "cuda") for name in METHODS]
    compiled = Task(
        out / "compiled.json",
        ("python", HERE / "compiled.py", "voc-pspnet50-ddcat", "--batch", arguments.batch, "--out", out / "compiled.json"),
    )
    head, tail = trainings[:-1], trainings[-1:]
    return [*first, *engines, *(task for pair in head for task in pair), *later, *(t for pair in tail for t in pair), compiled]


def rehearsal(out: Path) -> list[Task]:
    """List the same for a CPU, in minutes."""
    tiny, timed = ["model.width=4", "augment.crop=33"], ["--batch", 2, "--repeats", 1, "--device", "cpu"]
    scenes, graph = out / "scenes", out / "runs/undefended/last.safetensors"
    trained = [training(out, f"scenes-{name}", scenes, name, [*tiny, "train.epochs=1"], "cpu") for name in METHODS]
    return [
        step_task(out, *FIRST[0], [*timed, *settings(tiny)]),
        step_task(out, *FIRST[2], [*timed, *settings(tiny)]),
        Task(
            scenes / "classes.yaml",
            ("ddcat", "data", "scenes", scenes, "--train", 16, "--val", 4, "--size", "48x48"),
        ),
        *(task for pair in trained for task in pair),
        *(
            engine_task(out, graph, name, ["--size", "40x48", "--repeats", 10, "--rebuilds", 2, "--rehearse"])
            for name in ("ort-fp32", "openvino-fp32", "trt-fp32", "trt-rtx-fp32")
        ),
    ]


def step_task(out: Path, preset: str, mode: str, options: Sequence[object]) -> Task:
    """Time a training step beside the baselines in fp32."""
    folder = out / "train-step" / f"{preset}-{mode}"
    command = ("python", STEP, preset, *MODES[mode], "--baseline-precision", "fp32", "--out", folder, *options)
    return Task(folder / "train-step.json", command)


def engine_task(out: Path, checkpoint: Path, name: str, options: Sequence[object]) -> Task:
    """Measure one engine beside PyTorch."""
    command = ("python", HERE / "engines.py", checkpoint, "--only", name, "--out", out / "engines", *options)
    return Task(out / "engines" / f"{name}.json", command, needs=checkpoint)


def training(out: Path, preset: str, data: Path, name: str, chosen: Sequence[str], device: str) -> list[Task]:
    """Train a method for its minutes, and attack what came of it."""
    trained, folder = out / "runs" / name, out / "attacks" / name
    command = ["ddcat", "train", preset, "--data-root", data, "--out", trained, "--device", device, "--resume",
               "--save-every", 1, *settings(chosen)]  # fmt: skip
    attack = ("ddcat", "attack", trained, "--suite", "paper", "--device", device, "--out", folder)
    return [
        Task(trained / "summary.json", command, minutes=METHODS[name]),
        Task(folder / "attack.json", attack, needs=trained / "last.safetensors"),
    ]


def settings(values: Sequence[str]) -> list[str]:
    """Options of a command that override these values."""
    return [part for value in values for part in ("--set", value)]


def attacks_markdown(results: Sequence[AttackResult]) -> str:
    """
    Write the mIoU of several runs under each other, as floats and as 8-bit images.

    Raises
    ------
    BenchError
        If they were not evaluated on the same images.
    """
    labels = columns(results)
    names = run_names(results)
    tables = [
        table(
            ["mIoU", *labels],
            [[name, *(_figure(r, label, eight_bit) for label in labels)] for name, r in zip(names, results, strict=True)],
        )
        for eight_bit in (False, True)
    ]
    first = results[0]
    return (
        f"{data_line(first.data)}\n\n{tables[0]}\n{attack_lines(results)}\n"
        f"On 8-bit adversarial images, as a server would receive them:\n\n{tables[1]}\n{first.protocol}\n"
    )


def _figure(result: AttackResult, label: str, eight_bit: bool) -> str:
    row = result.find(label, eight_bit=eight_bit)
    return number(row.scores.miou) if row else "-"


if __name__ == "__main__":
    run(main)
