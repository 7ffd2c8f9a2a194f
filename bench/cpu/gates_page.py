"""
Make the page of the gate's verdicts on trained CamVid models, docs/results/gates-cpu.md, from the results beside it.

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

HEAD = """# The gate on trained models

This page shows the verdicts of the gate on ten engines for a CPU. Their models are MobileNetV2 trained on CamVid with DDC-AT
and PGD-AT ([how](robustness-camvid.md)). The gate uses the {images} images of the validation split. They are one clip, so its
confidence intervals resample blocks of ten frames.

- `int8` is calibrated on clean and attacked images, `int8-clean` on clean images.
- `int8-bad` is broken on purpose: it is `int8` with the scale of every activation multiplied by 0.3. We tried three factors on
  24 images: 0.5 hardly changes anything, and 0.15 ruins clean images, too.

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

OWN = """## int8: replayed attacks and attacks on its own graph

The table gives the mIoU of the int8 engine, in points, under two kinds of attack. A replayed attack was made on the fp32 model.
The other kind uses the gradients of the engine's own graph.
"""

WHY = """\
On the sound engines the attack on their own graph leaves up to three quarters of a point less than the replay, and in some rows
a little more. On the broken engines it leaves four and ten points less. With replayed attacks alone, one of the two would have
passed.

The twin of an int8 engine is not exactly the engine. It adds the same numbers in another order, so a sum is sometimes rounded
to the neighbouring step, and later layers follow from that. ONNX Runtime agrees with itself no better: two of its optimisation
levels give equal labels to {least:.1f} to {most:.1f} % of the pixels of {images} clean images. The twin and the engine agree on
{twin:.1f} % (`python bench/cpu/int8_optimisation_levels.py bundles/ddcat-ort-int8 --out FILE`). So the gate counts attacks on
the twin as transferred attacks, and attacks the engine itself on twice as many images.
"""

WITHOUT = (
    "s. These gates did not yet\nreport other perturbations (L2, universal, patch, minimal norm). "
    "Those take more time and do not change the verdict.\n"
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
    times = f"On two cores the full gate takes {_seconds(gates, 'default')} s, and `--quick` {_seconds(gates, 'quick')} s.\n"
    if not any(gate.perturbations for gate in gates.values()):
        times = times.replace("s.\n", WITHOUT)
    side_by_side = compare_markdown(compare(gates)).partition("\n\n")[2].replace("pareto.png", f"{folder.name}/pareto.png")
    alike = levels["alike"].values()
    return "\n".join(
        [
            HEAD.format(images=len(next(iter(gates.values())).data.names)),
            table(["engine", "verdict", "reason", "seconds"], verdicts, texts=3),
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
