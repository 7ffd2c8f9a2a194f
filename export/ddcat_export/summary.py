"""The lines that `ddcat export` prints about a bundle that it wrote."""

from typing import TYPE_CHECKING

from ddcat.bundle import Bundle
from ddcat.manifest import Manifest
from ddcat.manifest_precision import MixedPrecision, Quantisation

if TYPE_CHECKING:  # a bundle is rebuilt without torch
    from ddcat.engines.golden import Replay
    from ddcat_export.parity import Parity
    from ddcat_export.sensitivity import LayerError

__all__ = ["summarise"]

_SHOWN_LAYERS = 5  # the bundle holds the others


def summarise(
    bundle: Bundle,
    reference: str,
    replay: "Replay | None",
    parity: "Parity | None" = None,
    layers: "tuple[LayerError, ...]" = (),
    *,
    rebuilt: Manifest | None = None,
) -> str:
    """
    Describe a bundle.

    Parameters
    ----------
    bundle : Bundle
    reference : str
        The model that labelled the golden images before.
    replay : Replay or None
        How the engine's labels differ from those; None where there are none to compare with.
    parity : Parity, optional
        How near the graph is to PyTorch.
    layers : tuple of LayerError, optional
        The sensitivity of layers to int8, or of nodes to fp16 or bf16, the worst first.
    rebuilt : Manifest, optional
        Of the bundle that it was rebuilt from.
    """
    manifest = bundle.manifest
    engine, golden, proof = manifest.engine, manifest.golden, manifest.main_branch_only
    lines = [
        f"{bundle.path}: {manifest.name}, {manifest.source.architecture}, {manifest.source.method}",
        f"{engine.name} in {engine.effective_precision}, {engine.provider}, opset {manifest.opset}, "
        f"{', '.join(f'{t.name} {t.dtype}' for t in (*manifest.inputs, *manifest.outputs))}",
    ]
    if proof is not None and parity is not None:
        lines.append(
            f"main branch only: the graph has the same bytes without the {proof.spare_parameters} parameters of other heads, "
            f"and its {proof.multiply_adds} multiply-adds at {proof.size[0]}x{proof.size[1]} are those of the main branch"
        )
    if parity is not None:
        before = "" if manifest.quantisation is None else "before int8 "
        shapes = ", ".join("x".join(map(str, shape)) for shape in parity.shapes)
        lines.append(
            f"{before}equal to {reference} on shapes {shapes}: worst logit error {parity.logit_error:.1e} of their standard "
            f"deviation, {parity.near_ties} of {parity.pixels} labels differ (near ties)"
        )
    if manifest.quantisation is not None:
        lines += _int8_lines(manifest.quantisation, layers)
    if manifest.mixed is not None:
        lines += _mixed_lines(engine.effective_precision, manifest.mixed, layers)
    if manifest.temperature is not None and manifest.temperature.images is not None:
        lines.append(
            f"confidence at a temperature of {manifest.temperature.value:g}, fitted on {manifest.temperature.images} images"
        )
    if (rule := manifest.abstention) is not None:
        lines.append(
            f"abstains, if asked, at a confidence up to {rule.threshold:g}: at most {rule.risk:.3g} of the pixels are then "
            f"answered and wrong; on {rule.units} {rule.kind} {rule.abstained:.1%} are left out, {rule.error:.2%} of the "
            "others wrong"
        )
    elif rebuilt is not None and (lost := rebuilt.abstention) is not None:
        lines.append(
            f"no threshold for abstaining: the source bundle's was chosen on the outputs of {rebuilt.engine.name} in "
            f"{rebuilt.engine.effective_precision}; for a new one, export again with --confidence --risk {lost.risk:g}"
        )
    if golden is not None:
        compared = (
            "not compared, because no golden image of the source bundle has such a size"
            if replay is None
            else f"{replay.differing} of {replay.pixels} labels differ from those of {reference}"
        )
        lines.append(f"{golden.images} golden images, clean and attacked ({golden.source}): {compared}")
        if golden.labelled_by is not None:
            lines.append(
                f"this machine has no GPU for the engine: the golden labels are by {golden.labelled_by}; on a GPU, compare "
                f"them: ddcat inspect {bundle.path} --replay"
            )
    return "\n".join(
        [
            *lines,
            f"digest {bundle.digest} ({bundle.trust})",
            f"next: ddcat fidelity {bundle.path}",
            f"      ddcat serve {bundle.path}",
        ]
    )


def _int8_lines(quantisation: Quantisation, layers: "tuple[LayerError, ...]") -> list[str]:
    calibration, drop = quantisation.calibration, quantisation.drop
    if calibration is None:
        return ["int8, quantised by another program"]
    lines = [
        f"int8 in {quantisation.quantised_layers} layers, {len(quantisation.float_layers)} left in float, calibrated on "
        f"{calibration.images} images of {calibration.split} ({calibration.kind})"
    ]
    if (tuned := quantisation.finetuning) is not None:
        lines.append(
            f"weights fine-tuned for int8 by {tuned.steps} updates on {tuned.batch_size} images each ({tuned.method}): they "
            "differ from the checkpoint's; the lines above are about the graph before fine-tuning"
        )
    if drop is not None:
        lines.append(
            f"int8 costs {drop.clean:.2f} points of clean mIoU and {drop.adversarial:.2f} of adversarial mIoU on {drop.images} "
            f"images (attacks made on the PyTorch model); {quantisation.max_drop:g} were allowed"
        )
    return [*lines, *_most_sensitive("layers", layers, set(quantisation.float_layers))]


def _mixed_lines(precision: str, mixed: MixedPrecision, layers: "tuple[LayerError, ...]") -> list[str]:
    drop, equal = mixed.drop, mixed.equal_labels
    risky = [node for node in mixed.kept if node.reason != "labels"]
    return [
        f"{precision} in {mixed.typed_nodes} nodes, {len(mixed.kept)} kept in fp32: {len(risky)} for their values, "
        f"{len(mixed.kept) - len(risky)} for labels",
        f"{100 * equal.clean:.3f} % of the labels equal those of fp32, {100 * equal.adversarial:.3f} % on attacked images; "
        f"{100 * mixed.least_equal:g} % are needed",
        f"{precision} costs {drop.clean:.2f} points of clean mIoU and {drop.adversarial:.2f} of adversarial mIoU on "
        f"{drop.images} images (attacks made on the PyTorch model); {mixed.max_drop:g} were allowed",
        *_most_sensitive("nodes", layers, {node.name for node in mixed.kept}),
    ]


def _most_sensitive(what: str, layers: "tuple[LayerError, ...]", in_float: set[str]) -> list[str]:
    if not layers:
        return []
    return [
        f"most sensitive {what}, by the change of the logits in standard deviations, clean and attacked:",
        *(
            f"  {one.clean:.4f}  {one.adversarial:.4f}  {one.layer}{' (float)' if one.layer in in_float else ''}"
            for one in layers[:_SHOWN_LAYERS]
        ),
    ]
