"""
Every engine and precision that a CPU runs, beside PyTorch: speed, memory, size, and how near its answers are.

On a machine that does nothing else, with ddcat installed with the extras `bench`, `export`, `cpu` and `openvino`:

    python bench/cpu/engines.py --voc-root /data/voc --runs runs/* --data-root /data/camvid

PSPNet-50 and DeepLabv3-50 have seeded weights (`bench/cpu/random_checkpoint.py`) and are timed at 473 x 473; trained runs are
evaluated on images spread evenly over their validation split, clean and attacked. Each command is printed before it runs.
Existing results are not made again, and what an export refuses is left out, with the reason. The page is
OUT/../engines-cpu.md; `--page-only` makes it anew from the files.
"""

import argparse
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engines_page import COMBINATIONS, NETWORKS, SHAPES, page

from ddcat.atomic_files import write_text
from ddcat.cli_support import run
from ddcat.errors import DdcatError

HERE = Path(__file__).parent
SIZE = "473x473"
AT_SIZE = ["1x473x473"]


def main() -> None:
    """Measure what is not there yet, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/results/engines-cpu"), help="folder of the results")
    parser.add_argument("--work", type=Path, default=Path("engines-work"), help="folder of checkpoints and bundles")
    parser.add_argument("--runs", type=Path, nargs="*", default=[], help="trained runs")
    parser.add_argument("--data-root", type=Path, help="where their data set lies now")
    parser.add_argument("--voc-root", type=Path, help="VOC, to calibrate the seeded networks in int8 on")
    parser.add_argument("--max-images", type=int, default=34, help="images that trained runs are evaluated on (default: 34)")
    parser.add_argument("--repeats", type=int, default=12, help="timed calls of each contender (default: 12)")
    parser.add_argument("--page-only", action="store_true", help="measure nothing")
    arguments = parser.parse_args()
    out, work = arguments.out, arguments.work
    if not arguments.page_only:
        work.mkdir(parents=True, exist_ok=True)
        for network in NETWORKS:
            seeded(network, out, work, arguments.voc_root, arguments.repeats)
        for trained in arguments.runs:
            score_trained(trained, out, work, arguments.data_root, arguments.max_images)
    write_text(out.with_suffix(".md"), page(out))
    print(out.with_suffix(".md"))


def seeded(network: str, out: Path, work: Path, voc: Path | None, repeats: int) -> None:
    """Measure speed, memory and agreement of a network with seeded weights."""
    checkpoint = work / f"{network}.safetensors"
    once(checkpoint, HERE / "random_checkpoint.py", f"voc-{network}-undefended", checkpoint)
    for name, size, shapes in (("size", SIZE, AT_SIZE), ("dynamic", "dynamic", SHAPES)):
        given = ["--size", size, "--logits"]
        for engine, precision, bundle in bundles(checkpoint, work / f"{network}-{name}", given, calibration(voc, "clean")):
            stem = f"{network}-{engine}-{precision}"
            file = out / f"{stem}-agreement-{name}.json"
            once(file, HERE / "agreement.py", bundle, "--shapes", *shapes, "--out", file)
            if name == "size":
                measured(out / f"{stem}-speed.json", "speed", bundle, "--checkpoint", checkpoint, "--repeats", repeats)
    file = out / f"{network}-heads.json"
    once(file, HERE / "head_cost.py", work / f"{network}-size-ort-fp32", "--repeats", repeats, "--out", file)


def score_trained(trained: Path, out: Path, work: Path, data_root: Path | None, limit: int) -> None:
    """Compare the labels and the mIoU of a trained network, clean and attacked."""
    moved = ["--data-root", data_root] if data_root else []
    for engine, precision, bundle in bundles(trained, work / trained.name, moved, []):
        measured(
            out / f"camvid-{trained.name}-{engine}-{precision}-fidelity.json",
            "fidelity",
            bundle,
            "--checkpoint",
            trained,
            "--max-images",
            limit,
            *moved,
        )


def calibration(root: Path | None, kind: str) -> list[object]:
    """Options of an export in int8."""
    return [] if root is None else ["--data-root", root, "--calibration", kind]


def bundles(checkpoint: Path, stem: Path, options: list[Any], of_int8: list[object]) -> Iterator[tuple[str, str, Path]]:
    """Export each combination that can be: fp32 and int8 once from the checkpoint, the others from the graphs of these."""
    made: dict[str, Path] = {}
    for engine, precision in COMBINATIONS:
        bundle = Path(f"{stem}-{engine}-{precision}")
        source = made.get("int8" if precision == "int8" else "fp32")
        given = [] if source else [*options, *(of_int8 if precision == "int8" else [])]
        wanted = ("--engine", engine, "--precision", precision, *given, "--out", bundle)
        if once(bundle, "ddcat", "export", source or checkpoint, *wanted, refusable=True):
            made.setdefault(precision, bundle)
            yield engine, precision, bundle


def measured(file: Path, what: str, bundle: Path, *options: object) -> None:
    """Run a command, and keep its JSON file."""
    folder = bundle.with_name(f"{bundle.name}-{what}")
    if not file.exists():
        once(folder, "ddcat", what, bundle, *options, "--out", folder)
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / f"{what}.json", file)


def once(made: Path, program: str | Path, *words: object, refusable: bool = False) -> bool:
    """Run a command unless what it makes is there; whether it is there now."""
    if made.exists():
        return True
    script = isinstance(program, Path)
    line = [str(program if script else Path(sys.executable).with_name(program)), *map(str, words)]
    print(f"$ {shlex.join([Path(line[0]).name, *line[1:]])}", flush=True)
    done = subprocess.run(
        [sys.executable, *line] if script else line, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    if done.returncode == 2 and refusable:
        print(f"left out: {done.stderr.strip()}", flush=True)
    elif done.returncode:
        raise DdcatError(f"{Path(line[0]).name} ended with {done.returncode}: {done.stderr.strip()[-2000:]}")
    return done.returncode == 0


if __name__ == "__main__":
    run(main)
