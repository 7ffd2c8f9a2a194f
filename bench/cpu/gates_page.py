"""
The page of what the gate found of trained CamVid models: docs/results/gates-cpu.md from the results beside it.

    python bench/cpu/gates_page.py docs/results/gates-cpu

FOLDER/NAME/gate.json are results of `ddcat gate`; the page is FOLDER.md.
"""

import json
import sys
from pathlib import Path

import yaml

from ddcat.atomic_files import write_text
from ddcat.cli_support import run
from ddcat_bench.compare.comparison import compare, load_gate_results
from ddcat_bench.compare.report import compare_markdown
from ddcat_bench.gate.results import GateResult, MemberRow
from ddcat_bench.markdown import table

HEAD = """# What the gate finds of trained models

MobileNetV2 models that were trained on CamVid by DDC-AT and by PGD-AT ([how](robustness-camvid.md)), their engines on a CPU,
and two that are wrong on purpose, on the {images} images of the validation split. CamVid is one clip: blocks of ten frames are
drawn. `int8` is calibrated on clean and attacked images, `int8-clean` on clean ones; `int8-bad` is `int8` with the scale of
every activation at three tenths of what it should be. The factor was chosen among three: on 24 images, half of the
scale hardly changes anything, and 0.15 of it ruins clean images too.

```sh
ddcat export runs/ddcat --engine ort --out bundles/ddcat-ort-fp32
ddcat export runs/ddcat --engine openvino --precision bf16 --out bundles/ddcat-openvino-bf16
ddcat export runs/ddcat --engine ort --precision int8 --calibration clean --out bundles/ddcat-ort-int8-clean
ddcat export runs/ddcat --engine ort --precision int8 --calibration mixed --out bundles/ddcat-ort-int8
python bench/cpu/broken_engine.py bundles/ddcat-ort-int8 bundles/ddcat-ort-int8-bad --factor 0.3
ddcat gate bundles/ddcat-ort-fp32 --jobs 2 --out gates/ddcat-ort-fp32   # and all others; int8-bad with --quick
ddcat compare gates/*
```

## Verdicts
"""

OWN = """## int8: attacked itself, or by what was made on fp32

Points of mIoU that an attack leaves the int8 engine: made on the fp32 model and replayed, or made with the gradients of the
engine's own graph.
"""

WHY = """\
On the sound engines the attack on their own graph leaves up to three quarters of a point less than the replay, and at times a
little more; on the broken ones four and ten points less. A replay alone would have let one of them pass.

Why the twin of an int8 engine is not the engine: a sum that is rounded in another order falls to the other side of a step
here and there, and what follows departs from it. ONNX Runtime does not agree with itself any better: at two of its levels of
optimisation it labels {least:.1f} to {most:.1f} % of the pixels of {images} clean images alike, the twin and the engine
{twin:.1f} % (`python bench/cpu/int8_optimisation_levels.py bundles/ddcat-ort-int8 --out FILE`). So attacks on the twin count as
transferred ones, and the engine is asked twice as often.
"""

WITHOUT = (
    "s. These gates did not yet report other perturbations (L2, universal,\npatch, minimal norm), "
    "which take more time and decide nothing.\n"
)


def page(folder: Path) -> str:
    """Write the page of a folder of results."""
    words: dict[str, str] = yaml.safe_load((folder / "words.yaml").read_text(encoding="utf-8"))
    gates = load_gate_results([folder / name for name in words])
    levels = json.loads((folder / "int8-levels.json").read_text(encoding="utf-8"))
    verdicts = [
        [f"[{name}]({folder.name}/{name}/gate.md)", f"**{gate.verdict}**", words[name], f"{gate.environment.seconds:.0f}"]
        for name, gate in gates.items()
    ]
    own = [row for name, gate in gates.items() if gate.precision == "int8" for row in _own_and_replayed(name, gate)]
    times = f"The default budget takes {_seconds(gates, 'default')} s on two cores, `--quick` {_seconds(gates, 'quick')} s.\n"
    if not any(gate.perturbations for gate in gates.values()):
        times = times.replace("s.\n", WITHOUT)
    side_by_side = compare_markdown(compare(gates)).partition("\n\n")[2].replace("pareto.png", f"{folder.name}/pareto.png")
    alike = levels["alike"].values()
    return "\n".join(
        [
            HEAD.format(images=len(next(iter(gates.values())).data.names)),
            table(["engine", "verdict", "in words", "seconds"], verdicts, texts=3),
            times,
            f"## Side by side\n\n{side_by_side}",
            OWN,
            table(["engine", "attack", "replayed", "on its own graph", "difference"], own, texts=2),
            WHY.format(least=100 * min(alike), most=100 * max(alike), images=levels["images"], twin=100 * levels["twin"]),
        ]
    )


def _own_and_replayed(name: str, gate: GateResult) -> list[list[str]]:
    rows = []
    for own in (row for row in gate.members if row.source == "twin"):
        replayed: MemberRow = next(
            row for row in gate.members if (row.source, row.label, row.epsilon) == ("replay", own.label, own.epsilon)
        )
        rows.append([name, own.label, f"{replayed.engine:.2f}", f"{own.engine:.2f}", f"{own.engine - replayed.engine:+.2f}"])
    return rows


def _seconds(gates: dict[str, GateResult], budget: str) -> str:
    seconds = [gate.environment.seconds for gate in gates.values() if gate.budget == budget]
    return f"{min(seconds):.0f} to {max(seconds):.0f}"


def main() -> None:
    """Write the page."""
    folder = Path(sys.argv[1])
    write_text(folder.with_suffix(".md"), page(folder))


if __name__ == "__main__":
    run(main)
