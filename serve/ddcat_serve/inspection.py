"""Printing a bundle's manifest."""

import json
from collections.abc import Mapping

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ddcat.bundle import INTEGRITY_ONLY, NO_TRUST_POLICY, Bundle, TrustPolicy
from ddcat.confidence import CONFIDENCE_OUTPUT
from ddcat.engines.checks import format_sizes, format_tensors
from ddcat.manifest import DeviceKinds, EngineEntry, Golden, MainBranchProof, Manifest
from ddcat.manifest_precision import Calibration, MixedPrecision, Quantisation
from ddcat.passport import read_passport
from ddcat.text import printable

__all__ = ["print_bundle", "print_json"]


def print_json(bundle: Bundle) -> None:
    """Print digest, trust and manifest as JSON."""
    manifest = bundle.manifest.model_dump(mode="json")
    print(json.dumps({"digest": bundle.digest, "trust": bundle.trust, "manifest": manifest}, indent=2))


def print_bundle(bundle: Bundle, trust: TrustPolicy = NO_TRUST_POLICY) -> None:
    """Print the manifest as a table."""
    table = Table(title=Text(printable(str(bundle.path))), show_header=False, title_justify="left")
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for what, value in _rows(bundle, trust).items():
        lines = [value] if isinstance(value, str) else value
        table.add_row(what, Text("\n".join(printable(line, None) for line in lines)))  # a manifest is untrusted text
    console = Console()
    console.print(table)
    console.print("Every file matches the manifest.")
    if bundle.trust.startswith(INTEGRITY_ONLY):
        console.print("Integrity only: nothing here proves who wrote it. Use --require-signature or --expect-digest.")


def _rows(bundle: Bundle, trust: TrustPolicy) -> dict[str, str | list[str]]:
    manifest = bundle.manifest
    source, data = manifest.source, manifest.data
    trained = "imported" if source.step is None else f"step {source.step}"
    images = "" if data.images is None else f" of {data.images} images"
    mean, std = list(manifest.preprocessing.mean), list(manifest.preprocessing.std)
    return {
        "name": manifest.name,
        "digest": bundle.digest,
        "trust": bundle.trust,
        "checkpoint"
        if source.kind == "checkpoint"
        else "ONNX file": f"{source.checkpoint}, {trained}, SHA-256 {source.sha256}",
        "rebuilt from": manifest.rebuilt_from or "no other bundle",
        "code": source.git_commit or "not from a checkout",
        "architecture": source.architecture,
        "method": source.method,
        "attack in training": _pairs(source.attack),
        "main branch only": _proof(manifest.main_branch_only),
        "data": f"{data.name}, {data.split} split{images}, {data.root}",
        "image files": _files(manifest),
        "classes": ", ".join(entry.name for entry in manifest.classes),
        "preprocessing": f"in the graph: (image / 255 - {mean}) / {std}",
        "inputs": format_tensors(manifest.inputs),
        "outputs": format_tensors(manifest.outputs),
        "sizes": format_sizes(manifest.shapes),
        "engine": _engine(manifest),
        "engine options": _pairs(manifest.engine.options),
        "runs on": _device(manifest.engine),
        "int8": _quantisation(manifest.quantisation),
        "kept in fp32": _kept(manifest.mixed),
        "confidence": _confidence(manifest),
        "golden": _golden(manifest.golden),
        "files": [f"{name}  {entry.bytes} bytes  {entry.sha256[:12]}" for name, entry in manifest.files.items()],
        "versions": _pairs(manifest.versions),
        "passport": read_passport(bundle, trust).summary,
    }


def _files(manifest: Manifest) -> str:
    rule = manifest.preprocessing
    if manifest.data.long_side is not None:
        return (
            f"keep their size, but were resized to a long side of {manifest.data.long_side} pixels when this engine was "
            "evaluated: resize yours to it, or export again"
        )
    turned = "as they are stored" if rule.orientation == "stored" else "turned as their EXIF orientation says"
    if rule.bands is not None:
        turned += f", of {rule.bands} bands" if isinstance(rule.bands, int) else f", bands {list(rule.bands)}"
    if rule.values is not None:
        turned += f", of 16 bits a channel, with {rule.values[0]} and {rule.values[1]} as 0 and 255"
    if rule.resize is None:
        return f"{turned}, and not resized"
    to = rule.resize.to
    size = f"a long side of {to} pixels" if isinstance(to, int) else f"{to[0]}x{to[1]} (height x width)"
    return f"{turned}, and resized to {size} ({rule.resize.kernel}); masks have the size of the files"


def _engine(manifest: Manifest) -> str:
    engine = manifest.engine
    return (
        f"{engine.name}, {engine.provider}, {engine.effective_precision} ({engine.requested_precision} requested), "
        f"opset {manifest.opset}, loads {engine.file}, built from {engine.graph}"
    )


def _proof(proof: MainBranchProof | None) -> str:
    if proof is None:
        return "not proven: made from an ONNX file"
    height, width = proof.size
    return (
        f"proven; {proof.spare_parameters} parameters of other branches left out; "
        f"{proof.multiply_adds / 1e9:.3g} billion multiply-adds for an image of {height}x{width}"
    )


def _device(engine: EngineEntry) -> str:
    device = engine.built_for
    if device is None:
        return "any machine with the runtime"
    if isinstance(device, DeviceKinds):
        return f"GPUs of compute capability {', '.join(device.compute_capabilities)}, {device.runtime} alone"
    return f"{device.name}, compute capability {device.compute_capability}, {device.runtime} (driver {device.driver}) alone"


def _quantisation(quantisation: Quantisation | None) -> list[str]:
    if quantisation is None:
        return ["no: the graph is not quantised"]
    calibration, drop = quantisation.calibration, quantisation.drop
    allowed = "no limit was set" if quantisation.max_drop is None else f"{quantisation.max_drop:g} points of mIoU were allowed"
    floats = ", ".join(quantisation.float_layers) or "none"
    lines = [
        f"{quantisation.quantised_layers} layers in int8, {len(quantisation.float_layers)} in float: {floats}",
        "quantised by another program" if calibration is None else f"calibrated on {_images(calibration)}",
    ]
    if (tuned := quantisation.finetuning) is not None:
        attack = "" if tuned.attack is None else f", attacked ({_pairs(tuned.attack)})"
        lines.append(f"weights fine-tuned after the export by {tuned.steps} updates of {tuned.method}{attack}")
    if drop is None:
        return [*lines, f"its drop was not measured; {allowed}"]
    measured = f"{drop.clean:.2f} points of clean and {drop.adversarial:.2f} of adversarial mIoU"
    return [*lines, f"it costs {measured} on {drop.images} images ({_pairs(drop.attack)}); {allowed}"]


def _kept(mixed: MixedPrecision | None) -> list[str]:
    if mixed is None:
        return ["no nodes: none were looked for"]
    drop, equal = mixed.drop, mixed.equal_labels
    nodes = [
        f"{node.name}: {node.reason}" + ("" if node.largest is None else f", up to {node.largest:.3g}") for node in mixed.kept
    ]
    return [
        f"{len(nodes)} nodes; {mixed.typed_nodes} round to the precision",
        *nodes,
        f"ranges measured on {_images(mixed.calibration)}",
        f"equal labels: {equal.clean:.3%} clean, {equal.adversarial:.3%} attacked; {mixed.least_equal:.2%} were needed",
        f"it costs {drop.clean:.2f} points of clean and {drop.adversarial:.2f} of adversarial mIoU on {drop.images} images "
        f"({_pairs(drop.attack)}); {mixed.max_drop:g} points were allowed",
    ]


def _images(calibration: Calibration) -> str:
    attack = "" if calibration.attack is None else f" ({_pairs(calibration.attack)})"
    return f"{calibration.images} {calibration.kind} images of the {calibration.split} split{attack}"


def _confidence(manifest: Manifest) -> str | list[str]:
    if CONFIDENCE_OUTPUT not in [output.name for output in manifest.outputs]:
        return "not among the outputs"
    if (rule := manifest.abstention) is None:
        return _softmax(manifest)
    return [
        _softmax(manifest),
        f"abstains, if asked, where it is not above {rule.threshold:g}: then at most {rule.risk:.3g} of the labelled pixels "
        "are answered and wrong, on average over images like those of the split",
        f"chosen on {rule.units} {rule.kind}: {rule.abstained:.1%} of the pixels are left out, and {rule.error:.2%} of the "
        "others are wrong",
    ]


def _softmax(manifest: Manifest) -> str:
    temperature = manifest.temperature
    if temperature is None:
        return "the softmax of the logits"
    origin = (
        "given" if temperature.images is None else f"fitted on {temperature.images} images of the {manifest.data.split} split"
    )
    return f"the softmax of the logits / {temperature.value:g}, a temperature that was {origin}"


def _golden(golden: Golden | None) -> str:
    if golden is None:
        return "none"
    labels = "" if golden.labelled_by is None else f"; labelled by {golden.labelled_by}, not by the engine"
    return f"{golden.images} images and their adversarial ones ({_pairs(golden.attack)}), {golden.source}{labels}"


def _pairs(values: Mapping[str, object] | None) -> str:
    return ", ".join(f"{key} {value}" for key, value in (values or {}).items()) or "none"
