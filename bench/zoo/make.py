"""
Put a trained model into the zoo: its checkpoint, its int8 engine with the gate's passport, its evidence, its entry.

    python bench/zoo/make.py NAME RUN --data-root data/camvid --work zoo-work [--sea-images 34] [--sea-iterations 50]

Matrices and kernels are rounded to float16; all that follows is measured on the rounded weights. What is in the work folder
already is not made again. Results go to docs/results/zoo/NAME, files to zoo/, the entry to ddcat/zoo/index.json.
"""

import argparse
import io
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import torch
from safetensors.torch import save

from ddcat.atomic_files import write_bytes, write_json
from ddcat.bundle import open_bundle
from ddcat.cli_support import run
from ddcat.errors import DdcatError
from ddcat.hashing import sha256_of_file
from ddcat.zoo.index import INDEX, Entry, Index, StoredFile, read_index
from ddcat_bench.attack.results import AttackResult
from ddcat_bench.corruption.results import CorruptionResult
from ddcat_bench.gate.results import GateResult
from ddcat_bench.result_io import read_result
from ddcat_train.checkpoints import Checkpoint, load_checkpoint

ROOT = Path(__file__).parents[2]
ZOO, RESULTS = ROOT / "zoo", ROOT / "docs" / "results" / "zoo"
LARGEST = 16 * 2**20  # bytes of a file
LICENCE = "Apache-2.0, from ImageNet weights under Apache-2.0; trained on CamVid, which is for research"
KEPT = {  # of a result's folder, what goes into the repository
    "attack-quick": ("attack.json", "attack.md"),
    "attack-sea": ("attack.json", "attack.md"),
    "attack-corruptions": ("corruptions.json", "corruptions.md"),
    "gate-fp32": ("gate.json", "gate.md"),
    "gate-int8": ("gate.json", "gate.md"),
    "card": ("card.json", "card.md", "card.html"),
}


def main() -> None:
    """Take the steps that are left."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("run", type=Path)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("zoo-work"))
    parser.add_argument("--sea-images", type=int, default=34)
    parser.add_argument("--sea-iterations", type=int, default=50)
    parser.add_argument("--licence", default=LICENCE)
    given = parser.parse_args()

    work: Path = given.work / given.name
    work.mkdir(parents=True, exist_ok=True)
    stored = ZOO / f"{given.name}.safetensors"
    if not stored.exists():
        pack(load_checkpoint(given.run), stored)
    data = ["--data-root", given.data_root]
    sea = ["--iterations", given.sea_iterations, "--max-images", given.sea_images, "--batch", 17]
    made(work / "attack-quick", "ddcat", "attack", stored, "--suite", "quick", *data)
    made(work / "attack-corruptions", "ddcat", "attack", stored, "--suite", "corruptions", *data)
    for precision in ("fp32", "int8"):
        bundle = work / precision
        made(bundle, "ddcat", "export", stored, "--engine", "ort", "--precision", precision, *data)
        made(work / f"gate-{precision}", "ddcat", "gate", bundle, "--checkpoint", stored, *data)
    made(work / "attack-sea", "ddcat", "attack", stored, "--suite", "sea", *sea, *data)
    made(work / "card", "ddcat", "report", work)
    for folder, names in KEPT.items():
        for name in names:
            if (source := work / folder / name).exists():
                (RESULTS / given.name / folder).mkdir(parents=True, exist_ok=True)
                shutil.copy(source, RESULTS / given.name / folder / name)
    zipped = ZOO / f"{given.name}-int8.zip"
    archive(work / "int8", zipped)
    enter(entry(given.name, stored, zipped, work, given.licence))


def made(out: Path, *words: object) -> None:
    """Run a command that makes a folder, unless it is there."""
    if out.exists():
        return
    line = [*map(str, words), "--out", str(out)]
    print("$", *line, flush=True)
    done = subprocess.run([sys.executable, "-m", *line], check=False)
    if not out.exists():  # the gate's own status is no error: it is its verdict
        raise DdcatError(f"{' '.join(line)} ended with {done.returncode} and made no {out}")


def pack(checkpoint: Checkpoint, path: Path) -> None:
    """Write the network of a checkpoint with its matrices in float16, without what only its training needs."""
    description = checkpoint.description
    local = {
        "data": description.config.data.model_copy(update={"root": Path("data") / description.config.data.name}),
        "model": description.config.model.model_copy(
            update={
                key: Path(value.name)
                for key in ("pretrained", "start_from")
                if (value := getattr(description.config.model, key)) is not None
            }
        ),
    }
    description = description.model_copy(update={"config": description.config.model_copy(update=local)})
    tensors = {
        f"model.{key}": value.to(torch.float16) if value.dim() > 1 and value.is_floating_point() else value
        for key, value in checkpoint.part("model.").items()
    }
    path.parent.mkdir(exist_ok=True)
    write_bytes(path, save(tensors, {"ddcat": description.model_dump_json()}))
    load_checkpoint(path).segmenter()
    if path.stat().st_size > LARGEST:
        raise DdcatError(f"{path} has {path.stat().st_size} bytes, expected at most {LARGEST}")


def archive(bundle: Path, path: Path) -> None:
    """Write a bundle as a ZIP file; the same bundle gives the same bytes."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as file:
        for member in sorted(bundle.iterdir()):
            file.writestr(zipfile.ZipInfo(member.name, (1980, 1, 1, 0, 0, 0)), member.read_bytes(), zipfile.ZIP_DEFLATED)
    write_bytes(path, content.getvalue())


def entry(name: str, stored: Path, zipped: Path, work: Path, licence: str) -> Entry:
    """Return the model's entry, whose figures are those of its results."""
    checkpoint = load_checkpoint(stored)
    config = checkpoint.description.config
    bundle = open_bundle(work / "int8")
    return Entry(
        name=name,
        network=checkpoint.architecture,
        data=config.data.name,
        method=config.method.name,
        size=f"long side {config.data.long_side}",
        checkpoint=as_stored(stored),
        bundle=as_stored(zipped),
        digest=bundle.digest,
        figures=figures(work),
        licence=licence,
    )


def as_stored(path: Path) -> StoredFile:
    """Return the entry of a file."""
    return StoredFile(name=path.name, bytes=path.stat().st_size, sha256=sha256_of_file(path))


def figures(work: Path) -> dict[str, float]:
    """Return the figures of the list."""
    quick = read_result(work / "attack-quick" / "attack.json", AttackResult)
    sea = read_result(work / "attack-sea" / "attack.json", AttackResult)
    corruptions = read_result(work / "attack-corruptions" / "corruptions.json", CorruptionResult)
    gate = read_result(work / "gate-int8" / "gate.json", GateResult)
    found = {"clean": quick.rows[0].scores.miou}
    found |= {case.label: case.scores.miou for case in sea.worst_cases if case.name == "SEA" and not case.eight_bit}
    if (mean := corruptions.mean("common")) is not None:
        found["corruptions"] = mean
    found["int8 clean"] = next(threat.engine for threat in gate.threats if threat.name == "clean") / 100
    return {name: round(value, 4) for name, value in found.items()}


def enter(model: Entry) -> None:
    """Add a model to the index, or replace the one of its name."""
    others = [other for other in read_index().models if other.name != model.name]
    index = Index(schema_version=1, models=tuple(sorted([*others, model], key=lambda one: one.name)))
    write_json(INDEX, index.model_dump(mode="json"))


if __name__ == "__main__":
    run(main)
