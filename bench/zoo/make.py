"""
Put a trained model into the zoo: its checkpoint, its int8 engine with the gate's passport, its evidence, its entry.

    python bench/zoo/make.py NAME RUN --data-root data/camvid --trained COMMAND [--no-gate | --quick-gate]

Matrices and kernels are rounded to float16; all that follows is measured on the rounded weights. What is in the work folder
already is not made again. Results go to docs/results/zoo/NAME, files to zoo/, the entry to ddcat/zoo/index.json. At the end
docs/results/zoo.md is made from all of them.
"""

import argparse
import io
import shutil
import statistics
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from ddcat.atomic_files import read_json, write_bytes, write_json, write_text
from ddcat.bundle import open_bundle, write_bundle
from ddcat.cli_support import run
from ddcat.errors import DdcatError
from ddcat.hashing import sha256_of_file
from ddcat.zoo.index import INDEX, Entry, Index, StoredFile, read_index
from ddcat_bench.attack.results import AttackResult
from ddcat_bench.certify.results import CertificateResult
from ddcat_bench.corruption.results import CorruptionResult
from ddcat_bench.gate.results import GateResult
from ddcat_bench.markdown import table
from ddcat_bench.result_io import read_result
from ddcat_train.checkpoints import Checkpoint, load_checkpoint

ZOO, RESULTS = Path("zoo"), Path("docs/results/zoo")  # of the repository, where this is run: paths stand in bundles and results
SUITES = {  # of the validation split, as many images as two cores attack within half an hour
    "quick": ("--max-images", 34),
    "sea": ("--max-images", 10, "--iterations", 50, "--batch", 10),
    "corruptions": ("--max-images", 10),
}
LARGEST = 16 * 2**20  # bytes of a file
LICENCE = "Apache-2.0, from ImageNet weights under Apache-2.0; trained on CamVid, which is for research"
KINDS = {  # the common corruptions, as their authors sort them
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "snow": ("snow",),
    "frost": ("frost",),
    "fog": ("fog",),
    "brightness": ("brightness",),
    "contrast": ("contrast",),
    "JPEG": ("jpeg_compression",),
}
FIGURES = ("clean", "SEA at 4/255", "SEA at 8/255", "corruptions")
PAGE = """# Models of the zoo

This page gives the mIoU of the models that [`ddcat zoo`](../how-to/serve-a-ready-model.md) fetches, on CamVid's validation
split at 240 x 180. They are measured as they are stored, with matrices in float16.

{table}

- **certified**: of a network trained on Gaussian noise, after randomised smoothing; {corruptions} images, sigma 0.25.
- **clean** and **BIM**: {quick} images, evenly spread; BIM as in the paper, with epsilon 0.03 (7.65/255) and 7 steps of 0.01.
- **SEA**: {sea} images; for each the worst result of three attacks with {iterations} iterations. The full attack has 300
  iterations and lowers the score further.
- **corruptions**: {corruptions} images; the mean over the fifteen common corruptions and five severities.
- **gate**: the verdict on the engine for ONNX Runtime; "-" if the gate was not run. "Quick" is `ddcat gate --quick`: clean
  images and BIM with three steps, on all 101 images. [Why int8 is refused](gates-threats.md)

## Under corruptions

The mean mIoU over five severities, by kind of corruption, and in brackets the share of the model's own score on the same
{corruptions} clean images.

{kinds}

## Engines

Each engine labels the same {images} images as PyTorch in fp32. A cell has the share of equal labels, and how many times as fast
as eager PyTorch the engine is: medians of one image on one thread, in turns, in one run. `python bench/zoo/engines.py` measured
this on {machine}, while other work kept the machine busy.

{engines}

## What these figures are

These are few images of one clip, so a difference of a point or two means nothing. The folder `zoo/` beside this page has the
results with the counts of every image, and a card for each model. This command makes everything for one model from a run:

```sh
python bench/zoo/make.py NAME RUN --data-root data/camvid --trained COMMAND
```

The runs were trained by these commands:

{trained}
"""
KEPT = {  # of a result's folder, what goes into the repository
    "attack-quick": ("attack.json", "attack.md"),
    "attack-sea": ("attack.json", "attack.md"),
    "attack-corruptions": ("corruptions.json", "corruptions.md"),
    "certificate": ("certificate.json", "certificate.md"),
    "gate-fp32": ("gate.json", "gate.md"),
    "gate-int8": ("gate.json", "gate.md"),
    "card": ("card.json", "card.md"),
}


def main() -> None:
    """Take the steps that are left."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("run", type=Path)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("build/zoo"))
    parser.add_argument("--trained", required=True, help="the command of its training")
    parser.add_argument("--licence", default=LICENCE)
    parser.add_argument("--no-gate", action="store_true", help="leave the gate out, which takes longest")
    parser.add_argument("--quick-gate", action="store_true", help="run the quick gate in place of the full one")
    given = parser.parse_args()

    work: Path = given.work / given.name
    work.mkdir(parents=True, exist_ok=True)
    stored = ZOO / f"{given.name}.safetensors"
    if not stored.exists():
        pack(load_checkpoint(given.run), stored)
    data = ["--data-root", given.data_root]
    for suite, options in SUITES.items():
        made(work / f"attack-{suite}", "ddcat", "attack", stored, "--suite", suite, *options, *data)
    if load_checkpoint(stored).description.config.method.name == "gaussian":
        made(work / "certificate", "ddcat", "attack", stored, "--certify", *SUITES["corruptions"], *data)
    for precision in ("fp32", "int8"):
        bundle = work / precision
        made(bundle, "ddcat", "export", stored, "--engine", "ort", "--precision", precision, *data)
        relocate(bundle, stored)
        if not given.no_gate:
            budget = ["--quick"] if given.quick_gate else []
            made(work / f"gate-{precision}", "ddcat", "gate", bundle, "--checkpoint", stored, *budget, *data)
    made(work / "card", "ddcat", "report", work)
    for folder, names in KEPT.items():
        for name in names:
            if (source := work / folder / name).exists():
                (RESULTS / given.name / folder).mkdir(parents=True, exist_ok=True)
                shutil.copy(source, RESULTS / given.name / folder / name)
    zipped = ZOO / f"{given.name}-int8.zip"
    archive(work / "int8", zipped)
    enter(entry(given.name, stored, zipped, work, trained=given.trained, licence=given.licence))
    write_text(RESULTS.with_suffix(".md"), page(read_index()))


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


def relocate(bundle: Path, stored: Path) -> None:
    """Let a bundle name its checkpoint by the path within the repository, and not by that of this machine."""
    opened = open_bundle(bundle)
    manifest = opened.manifest
    if manifest.source.checkpoint == str(stored):
        return
    source = manifest.source.model_copy(update={"checkpoint": str(stored)})
    shutil.rmtree(bundle)
    write_bundle(bundle, manifest.model_copy(update={"source": source}), opened.files)


def archive(bundle: Path, path: Path) -> None:
    """Write a bundle as a ZIP file; the same bundle gives the same bytes."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as file:
        for member in sorted(bundle.iterdir()):
            file.writestr(zipfile.ZipInfo(member.name, (1980, 1, 1, 0, 0, 0)), member.read_bytes(), zipfile.ZIP_DEFLATED)
    write_bytes(path, content.getvalue())


def entry(name: str, stored: Path, zipped: Path, work: Path, *, trained: str, licence: str) -> Entry:
    """Return the model's entry, whose figures are those of its results."""
    checkpoint = load_checkpoint(stored)
    config = checkpoint.description.config
    bundle = open_bundle(work / "int8")
    return Entry(
        name=name,
        network=checkpoint.architecture,
        data=config.data.name,
        method=config.method.name,
        size=f"a long side of {config.data.long_side}",
        checkpoint=as_stored(stored),
        bundle=as_stored(zipped),
        digest=bundle.digest,
        figures=figures(work),
        trained=trained,
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
    found = {"clean": quick.rows[0].scores.miou}
    found |= {case.label: case.scores.miou for case in sea.worst_cases if case.name == "SEA" and not case.eight_bit}
    if (mean := corruptions.mean("common")) is not None:
        found["corruptions"] = mean
    return {name: round(value, 4) for name, value in found.items()}


def enter(model: Entry) -> None:
    """Add a model to the index, or replace the one of its name."""
    others = [other for other in read_index().models if other.name != model.name]
    index = Index(schema_version=1, models=tuple(sorted([*others, model], key=lambda one: one.name)))
    write_json(INDEX, index.model_dump(mode="json"))


def verdict(folder: Path, gate: str) -> str:
    """Return the verdict of a gate with a link to it; "-" where there is none."""
    file = folder / gate / "gate.json"
    if not file.exists():
        return "-"
    result = read_result(file, GateResult)
    quick = ", quick" if result.budget == "quick" else ""
    return f"[{result.verdict}{quick}](zoo/{folder.name}/{gate}/gate.md)"


def page(index: Index) -> str:
    """Make the page of results from those of every model."""
    rows = []
    for model in index.models:
        folder = RESULTS / model.name
        quick = read_result(folder / "attack-quick" / "attack.json", AttackResult)
        found = figures(folder)
        strongest = next(row.scores.miou for row in quick.rows if row.label == "n = 7")
        certificate = folder / "certificate" / "certificate.json"
        certified = f"{read_result(certificate, CertificateResult).certified_miou:.3f}" if certificate.exists() else "-"
        verdicts = (verdict(folder, f"gate-{name}") for name in ("fp32", "int8"))
        rows.append(
            [model.name, *(f"{found.get(name, float('nan')):.3f}" for name in FIGURES[:1]), f"{strongest:.3f}",
             *(f"{found.get(name, float('nan')):.3f}" for name in FIGURES[1:]), certified, *verdicts]
        )  # fmt: skip
    return PAGE.format(
        table=table(["model", "clean", "BIM, n = 7", *FIGURES[1:], "certified", "gate, fp32", "gate, int8"], rows),
        kinds=table(["model", *KINDS, "camera and codec"], [corrupted(model.name) for model in index.models]),
        **engines([model.name for model in index.models]),
        **{name: options[1] for name, options in SUITES.items()},
        iterations=SUITES["sea"][3],
        trained="\n".join(f"- {model.name}: `{model.trained}`" for model in index.models),
    )


def corrupted(name: str) -> list[str]:
    """Return a model's row of the kinds of corruption."""
    result = read_result(RESULTS / name / "attack-corruptions" / "corruptions.json", CorruptionResult)
    means = [statistics.mean(row.miou for corruption in kind for row in result.of(corruption)) for kind in KINDS.values()]
    capture = result.mean("capture")
    assert capture is not None
    return [name, *(f"{mean:.3f} ({mean / result.clean.miou:.0%})" for mean in (*means, capture))]


def engines(names: Sequence[str]) -> dict[str, Any]:
    """Return the table of engines and what it was measured on."""
    measured = {name: read_json(file, DdcatError) for name in names if (file := RESULTS / name / "engines.json").exists()}
    if not measured:
        return {"engines": "Not measured yet.", "images": 0, "machine": "no machine"}
    kinds = {"fp32": "ONNX Runtime fp32", "bf16": "OpenVINO bf16", "int8": "ONNX Runtime int8"}
    rows = [
        [name, *(f"{found['equal_labels'][kind]:.2%}, {found['times_as_fast'][kind]:.2f}" for kind in kinds)]
        for name, found in measured.items()
    ]
    one = next(iter(measured.values()))
    return {
        "engines": table(["model", *kinds.values()], rows),
        "images": one["images"],
        "machine": f"{one['machine']['processor']}, {one['machine']['cores']} cores",
    }


if __name__ == "__main__":
    run(main)
