"""
What works with models of other libraries, one row a model: trained, exported, gated and served.

    python bench/any_model/table.py --work any-model --out docs/results/any-model [MODEL ...]

Each model of `models.py` is tiny and has random weights. It is cut, trained for some steps of DDC-AT and of PGD-AT on generated
scenes of 64 x 64, so that it predicts several classes, exported in fp32 for any size, or else for one, and in int8, gated with
the quick budget and served. A row that is in the work folder already is not made again: remove its file to do so. `--page`
writes the page alone.
"""

import argparse
import io
import json
import re
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import ddcat
from bench.any_model.models import MODELS, TinyModel
from ddcat import provenance
from ddcat.atomic_files import write_text
from ddcat.bundle import open_bundle
from ddcat.cli_support import run
from ddcat.engines import open_engine
from ddcat.errors import DdcatError
from ddcat_bench.markdown import table
from ddcat_train.checkpoints import LAST, load_checkpoint
from ddcat_train.config import Config, load_config
from ddcat_train.data import open_dataset
from ddcat_train.data.synthetic.generate import write_scenes
from ddcat_train.networks.whole import CutSegmenter, QuerySegmenter, build_whole
from ddcat_train.networks.whole.calls import logits_of
from ddcat_train.networks.whole.sources import builder
from ddcat_train.pixels import to_planes
from ddcat_train.run.trainer import Trainer
from examples.server_process import ask, served

CLASSES = 6  # of the scenes
SIDE = 64
IMAGES = 12  # of the validation split
TRAINED, BATCH, EPOCHS = 8, 4, 60  # so many that each model predicts several classes
LIBRARIES = ("torch", "transformers", "torchvision", "timm", "segmentation-models-pytorch", "onnx", "onnxruntime", "numpy")
PAGE = """# Models of other libraries, end to end

This page shows which models of other libraries can be trained, exported, gated and served, and whether the engine computes
what the model computes. It shows nothing about accuracy: each model is a tiny version of its family with random weights. It is
trained for 120 steps on generated scenes of {scenes}. All of it runs on a CPU:

```sh
python bench/any_model/table.py --work any-model --out docs/results/any-model
```

{table}

- **cut at**: the last layers of the model, of which DDC-AT's other branches have copies.
- **cut = whole**: the largest difference of a logit between the library's own model and ddcat's segmenter made from it.
- **exports for**: the sizes of images that the engine accepts, any size from 33 x 33 on or one size. Both have the same checks:
  the size of the file, the number of multiply-adds, and a comparison with PyTorch (on 7 shapes for any size).
- **logits**: the largest difference between a logit of PyTorch and one of the engine, in standard deviations of all logits, on
  the images of the comparison at export. It reveals a faulty layer even if the model predicts a single class.
- **labels**: equal labels on the {images} images of the validation split, and the number of classes that PyTorch predicts.
  Rounding can change a label where two classes are equally likely, which is frequent after so little training. Where a
  model predicts a single class, equal labels prove little, and the logits say more.
- **twin = engine**: the smallest share of labels that are equal in the twin and in the engine, over the gate's attacks.
- **gate, quick**: the verdict on the fp32 engine, and the checks that did not pass. These gates are `ddcat gate --quick`, with
  clean images and one short attack. They show that the gate works with the model; for a release run the full gate. A
  model that predicts a single class keeps its score under attack, whatever the engine does: robustness is inconclusive.
- **served = engine's**: pixels of the masks received over HTTP that equal the engine's.
{missing}
Versions: {versions}.
"""
HEAD = [
    "model", "library", "cut at", "cut = whole", "steps of DDC-AT, PGD-AT", "exports for", "logits of fp32 - PyTorch's",
    "labels of fp32 = PyTorch's", "of int8 = fp32's", "twin = engine", "gate, quick", "served = engine's",
]  # fmt: skip


def main() -> None:
    """Make the rows that are missing, then the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="names of models.py; all by default")
    parser.add_argument("--work", type=Path, default=Path("any-model"))
    parser.add_argument("--out", type=Path, required=True, help="the page and its figures, without suffix")
    parser.add_argument("--page", action="store_true", help="make no row")
    arguments = parser.parse_args()
    scenes = arguments.work / "scenes"
    if not scenes.exists():
        write_scenes(scenes, train=TRAINED, val=IMAGES, size=(SIDE, SIDE))
    for name in [] if arguments.page else arguments.models or MODELS:
        file = arguments.work / f"{_slug(name)}.json"
        if file.exists():
            continue
        began = time.monotonic()
        row = make_row(MODELS[name], scenes, arguments.work / _slug(name))
        row |= {"seconds": round(time.monotonic() - began, 1), "versions": provenance.versions(LIBRARIES)}
        write_text(file, json.dumps(row, indent=2) + "\n")
        print(name, json.dumps(row), flush=True)
    found = {name: arguments.work / f"{_slug(name)}.json" for name in MODELS}
    rows = {name: json.loads(file.read_text(encoding="utf-8")) for name, file in found.items() if file.exists()}
    write_text(arguments.out.with_suffix(".json"), json.dumps(rows, indent=2) + "\n")
    write_text(arguments.out.with_suffix(".md"), page(rows))


def make_row(model: TinyModel, scenes: Path, folder: Path) -> dict[str, Any]:
    """Take one model through everything; what fails is in the row, as the error says it."""
    shutil.rmtree(folder, ignore_errors=True)
    row: dict[str, Any] = {"library": model.whole, "settings": dict(model.settings)}
    config = configuration(model, scenes, "ddcat")
    _note(row, "cut", lambda: compare_cut(config))
    for method in ("ddcat", "pgd-at"):
        _note(row, method, lambda method=method: train(configuration(model, scenes, method), folder / method))  # type: ignore[misc]
    if "error" in row["ddcat"]:
        return row
    fp32, int8 = folder / "fp32", folder / "int8"
    _note(row, "any_size", lambda: export(folder / "ddcat", fp32))
    sizes = None
    if "error" in row["any_size"]:
        sizes = ((SIDE, SIDE),)
        _note(row, "one_size", lambda: export(folder / "ddcat", fp32, sizes=sizes))
    if not fp32.exists():
        return row
    _note(row, "labels", lambda: compare_labels(folder / "ddcat", fp32, scenes))
    _note(row, "int8", lambda: export(folder / "ddcat", int8, sizes=sizes, precision="int8", calibration_images=8))
    if int8.exists():
        _note(row, "int8_labels", lambda: compare_bundles(fp32, int8, scenes))
    _note(row, "gate", lambda: gate(fp32))
    _note(row, "served", lambda: compare_served(fp32, scenes))
    return row


def configuration(model: TinyModel, scenes: Path, method: str) -> Config:
    """Return a short run."""
    values = [
        f"data.root={scenes}", f"augment.crop={SIDE}", f"train.epochs={EPOCHS}", f"train.batch_size={BATCH}",
        "optim.name=adamw", "optim.lr=0.002", f"model.whole={model.whole}", f"model.settings={json.dumps(model.settings)}",
    ]  # fmt: skip
    return load_config(f"scenes-{method}", values)


def compare_cut(config: Config) -> dict[str, Any]:
    """Compare the cut model with the whole one of the same weights, on noise."""
    torch.manual_seed(0)
    whole = builder(config.model, None, [])(CLASSES).eval()
    torch.manual_seed(0)
    network = build_whole(config.model, classes=CLASSES, heads=("main", "auxiliary", "mask")).eval()
    assert isinstance(network, CutSegmenter | QuerySegmenter)
    images = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours = network(images)
        if isinstance(network, CutSegmenter):
            theirs = logits_of(whole(network.prepared(images)))
            assert theirs is not None
        else:
            theirs = semantic_map(whole, network.prepared(images))
        theirs = F.interpolate(theirs, size=(SIDE, SIDE), mode="bilinear")  # where it is smaller, as transformers does
    spare = sum(p.numel() for name, head in network.heads.items() if name != "main" for p in head.parameters())
    total = sum(p.numel() for p in network.parameters())
    at = str(network.cut) if isinstance(network, CutSegmenter) else "classes and masks of its queries"
    return {"at": at, "difference": float((ours - theirs).abs().max()), "parameters": total - spare, "spare_parameters": spare}


def semantic_map(model: nn.Module, planes: Tensor) -> Tensor:
    """Return the logarithm of what transformers makes a semantic map of: (N, K, h, w)."""
    if isinstance(getattr(model, "attn_mask_probs", None), Tensor):
        model.attn_mask_probs.fill_(0)  # as at the end of EoMT's training
    output: Any = model(planes)
    classes = output.class_queries_logits.softmax(-1)[..., :-1]
    return torch.einsum("nqk,nqhw->nkhw", classes, output.masks_queries_logits.sigmoid()).clamp(min=1e-6).log()


def train(config: Config, run: Path) -> dict[str, Any]:
    """Do all steps of a run, and save it."""
    trainer = Trainer(config, device="cpu")
    losses = [float(trainer.train_step(batch)["loss"]) for batch in trainer.batches()]
    trainer.save(run / LAST, resumable=False)
    if not np.isfinite(losses).all():
        raise DdcatError(f"the losses are {losses}")
    return {"losses": losses}


def export(run: Path, out: Path, **options: Any) -> dict[str, Any]:
    """Export with all proofs."""
    done = ddcat.export(run, out, **options)
    found = {"golden_differing": done.replay.share, "spare_parameters": done.bundle.manifest.main_branch_only.spare_parameters}
    if done.parity is not None:
        parity = done.parity
        found |= {"pixels": parity.pixels, "differing": parity.near_ties, "logit_error": parity.logit_error}
    return found


def pictures(scenes: Path) -> npt.NDArray[np.uint8]:
    """Read the validation split, (N, H, W, 3)."""
    dataset = open_dataset("scenes", scenes, "val")
    return np.stack([dataset.read(index).image for index in range(len(dataset))])


def labels_of(bundle: Path, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Label images with the engine of a bundle."""
    with open_engine(open_bundle(bundle), threads=1) as engine:
        return np.concatenate([engine.infer(image[None]).labels for image in images])


def compare_labels(run: Path, bundle: Path, scenes: Path) -> dict[str, Any]:
    """Compare the labels of an engine with those of PyTorch."""
    images, network = pictures(scenes), load_checkpoint(run).segmenter()
    with torch.no_grad():
        expected = np.concatenate([network(to_planes(image[None])).argmax(1).numpy() for image in images])
    return {**_equal(labels_of(bundle, images), expected), "classes": len(np.unique(expected))}


def compare_bundles(one: Path, other: Path, scenes: Path) -> dict[str, Any]:
    """Compare the labels of two engines."""
    images = pictures(scenes)
    return _equal(labels_of(other, images), labels_of(one, images))


def _equal(labels: npt.NDArray[Any], expected: npt.NDArray[Any]) -> dict[str, Any]:
    return {"pixels": int(labels.size), "differing": int((labels != expected).sum())}


def gate(bundle: Path) -> dict[str, Any]:
    """Judge with the quick budget."""
    result = ddcat.gate(bundle, quick=True, repeats=10, pictures=False, force=True)
    assert result is not None
    return {
        "verdict": result.verdict,
        "findings": {finding.name: [finding.verdict, finding.found] for finding in result.findings},
        "twin_agreement": min(member.twin_agreement for member in result.members),
        "agreement": min(member.agreement for member in result.members),
    }


def compare_served(bundle: Path, scenes: Path) -> dict[str, Any]:
    """Send PNGs by HTTP and compare the masks with what the engine gives directly."""
    images = pictures(scenes)
    with served(bundle) as address:
        masks = np.stack([np.asarray(Image.open(io.BytesIO(ask(address, image)))) for image in images])
    return _equal(masks, labels_of(bundle, images))


def _note(row: dict[str, Any], name: str, work: Callable[[], dict[str, Any]]) -> None:
    try:
        row[name] = work()
    except Exception as cause:  # whatever it is, it belongs into the table
        row[name] = {"error": f"{type(cause).__name__}: {' '.join(str(cause).split())[:500]}"}


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def page(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Write the page of all rows."""
    body = [[cell.replace("|", "\\|") for cell in cells(name, row)] for name, row in rows.items()]
    libraries = next(iter(rows.values()))["versions"] if rows else {}
    named = ", ".join(f"{library} {version}" for library, version in libraries.items() if library in LIBRARIES)
    absent = [name for name in MODELS if name not in rows]
    missing = (
        f"\n`bench/any_model/models.py` also defines these models, which were not run yet: {'; '.join(absent)}.\n"
        if absent
        else ""
    )
    return PAGE.format(
        table=table(HEAD, body, texts=3).rstrip(),
        versions=named,
        scenes=f"{SIDE} x {SIDE}",
        images=IMAGES,
        missing=missing,
    )


def cells(name: str, row: Mapping[str, Any]) -> list[str]:
    """Write one row."""
    cut, judged = row["cut"], row.get("gate", {})
    any_size = "error" not in row.get("any_size", {"error": ""})
    size = "any size" if any_size else f"{SIDE} x {SIDE}" if "pixels" in row.get("one_size", {}) else "not"
    trained = ", ".join(str(len(row.get(method, {}).get("losses", ()))) for method in ("ddcat", "pgd-at"))
    twin = judged.get("twin_agreement")
    error = row.get("any_size" if any_size else "one_size", {}).get("logit_error")
    return [
        name,
        row["library"],
        " + ".join(f"`{part}`" for part in cut["at"].split("+")) if "at" in cut and "." in cut["at"] else cut.get("at", "not"),
        f"{cut['difference']:.0e}".replace("0e+00", "0") if "difference" in cut else "no",
        trained,
        size,
        "no" if error is None else f"{error:.0e}",
        _share(row.get("labels")),
        _share(row.get("int8_labels")),
        "no" if twin is None else f"{100 * twin:.2f} %",
        _verdict(judged),
        _share(row.get("served")),
    ]


def _share(found: Mapping[str, Any] | None) -> str:
    if not found or "pixels" not in found:
        return "no"
    share = "all" if not found["differing"] else f"all but {found['differing']}"
    count = found.get("classes")
    classes = "" if count is None else ", 1 class" if count == 1 else f", {count} classes"
    return f"{share} of {found['pixels']}{classes}"


def _verdict(judged: Mapping[str, Any]) -> str:
    if "verdict" not in judged:
        return "no"
    others = [name for name, (verdict, _) in judged["findings"].items() if verdict != "pass"]
    return f"{judged['verdict']}: {', '.join(others)}" if others else str(judged["verdict"])


if __name__ == "__main__":
    run(main)
