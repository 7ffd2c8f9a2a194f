"""
What only a GPU can show: the speed of our training step there, and PSPNet-50 on CamVid at full resolution under attack.

On a machine with a GPU, and ddcat installed with the extra `bench`:

    python bench/gpu/train_step.py --camvid DIR --pretrained resnet50.safetensors

`resnet50.safetensors` holds the initial weights of the backbone, made with `ddcat data import-checkpoint`. Everything is done
by the console commands, each of which is printed before it runs; what is there already is not done again, and a training that
was stopped continues. `--rehearse` goes through it on a CPU in minutes: two of the presets, toy networks, generated scenes.
"""

import argparse
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from bench.paper.train_step_report import train_steps_markdown
from bench.paper.train_step_results import TrainStepResult
from ddcat.atomic_files import write_text
from ddcat.cli_support import run
from ddcat.errors import DdcatError
from ddcat_bench.attack.report import attack_lines, columns, run_names
from ddcat_bench.attack.results import AttackResult
from ddcat_bench.markdown import data_line, number, table
from ddcat_bench.result_io import read_result

PRESETS = [f"voc-{network}-{method}" for network in ("pspnet50", "deeplabv3_50") for method in ("sat", "ddcat")]
MODES = {  # precision of our step beside the baselines in fp32
    "fp32": ["--precision", "fp32", "--no-tf32"],
    "fp32-tf32": ["--precision", "fp32", "--tf32"],
    "bf16": ["--precision", "bf16", "--no-tf32"],
    "bf16-tf32": ["--precision", "bf16", "--tf32"],
}
STEP = Path(__file__).parents[1] / "paper/train_step.py"
METHODS = ("undefended", "sat", "ddcat", "pgd-at")
# 480 x 360, the size of CamVid's own files in the layout that is read; crops of 8 n + 1, as in the paper
FULL = ("data.long_side=null", "augment.crop=[353, 473]", "model.backbone=resnet50", "model.output_stride=8")


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


def main() -> None:
    """Run all that is not there yet, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu"), help="folder of the results (default: gpu)")
    parser.add_argument("--camvid", type=Path, help="folder of CamVid; without it the training is left out")
    parser.add_argument("--pretrained", type=Path, help="initial weights of ResNet-50; random ones by default")
    parser.add_argument("--batch", type=int, default=16, help="images in a step of train_step.py (default: 16)")
    parser.add_argument("--rehearse", action="store_true", help="go through all of it on a CPU, with toy networks")
    arguments = parser.parse_args()
    out: Path = arguments.out
    tiny = ["model.width=4", "augment.crop=33"] if arguments.rehearse else []
    device = "cpu" if arguments.rehearse else "cuda"

    steps = []
    for preset in PRESETS[:: 3 if arguments.rehearse else 1]:
        for mode, options in MODES.items():
            folder = out / "train-step" / f"{preset}-{mode}"
            batch, repeats = (2, 1) if arguments.rehearse else (arguments.batch, 20)
            once(
                folder / "train-step.json",
                "python", STEP, preset, *options, "--baseline-precision", "fp32", "--batch", batch,
                "--repeats", repeats, "--device", device, "--out", folder, *settings(tiny),
            )  # fmt: skip
            steps.append(read_result(folder / "train-step.json", TrainStepResult))
    write_text(out / "train-step.md", train_steps_markdown(steps))

    family, data, chosen = "camvid", arguments.camvid, [*FULL, "train.precision=bf16", "train.workers=8"]
    if arguments.pretrained:
        chosen.append(f"model.pretrained={arguments.pretrained}")
    if arguments.rehearse:
        family, data, chosen = "scenes", out / "scenes", [*tiny, "train.epochs=1", "train.precision=bf16"]
        once(data / "classes.yaml", "ddcat", "data", "scenes", data, "--train", 16, "--val", 4, "--size", "48x48")
    if data is None:
        print("no --camvid: the training is left out")
        return
    attacks = []
    for method in METHODS:
        trained, folder = out / "runs" / method, out / "attacks" / method
        once(
            trained / "summary.json",
            "ddcat", "train", f"{family}-{method}", "--data-root", data, "--out", trained, "--device", device, "--resume",
            *settings(chosen),
        )  # fmt: skip
        once(
            folder / "attack.json",
            "ddcat", "attack", trained, "--suite", "paper", "--device", device, "--out", folder,
        )  # fmt: skip
        attacks.append(read_result(folder / "attack.json", AttackResult))
    write_text(out / f"{family}.md", attacks_markdown(attacks))
    print(f"{out}: train-step.md, {family}.md")


def settings(values: list[str]) -> list[str]:
    """Options of a command that override these values."""
    return [part for value in values for part in ("--set", value)]


def once(made: Path, *command: object) -> None:
    """Run a command unless what it makes is there; stop with the exit status of one that fails."""
    if made.exists():
        print(f"{made} is there")
        return
    words = [str(word) for word in command]
    print(f"$ {shlex.join(words)}", flush=True)
    status = subprocess.run([str(Path(sys.executable).with_name(words[0])), *words[1:]], check=False).returncode
    if status:
        raise DdcatError(f"{words[0]} ended with {status}; run this again to go on from there")


if __name__ == "__main__":
    run(main)
