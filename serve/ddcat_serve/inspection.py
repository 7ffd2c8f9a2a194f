"""A bundle, for a person to read."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ddcat.bundle import PASSPORT, Bundle
from ddcat.manifest import Range, TensorEntry

__all__ = ["print_bundle"]


def print_bundle(bundle: Bundle) -> None:
    """Print what the manifest says."""
    manifest = bundle.manifest
    source, data, engine, shapes = manifest.source, manifest.data, manifest.engine, manifest.shapes
    attack = "none" if source.attack is None else ", ".join(f"{key} {value}" for key, value in source.attack.items())
    trained = "imported" if source.step is None else f"step {source.step}"
    images = "" if data.images is None else f" of {data.images} images"
    mean, std = list(manifest.preprocessing.mean), list(manifest.preprocessing.std)
    rows = {
        "name": manifest.name,
        "bundle": bundle.digest,
        "checkpoint": f"{source.checkpoint}, {trained}, SHA-256 {source.sha256}",
        "code": source.git_commit or "not from a checkout",
        "architecture": source.architecture,
        "method": source.method,
        "attack in training": attack,
        "main branch only": f"proven; {manifest.main_branch_only.spare_parameters} parameters of other branches left out",
        "data": f"{data.name}, {data.split} split{images}, {data.root}",
        "classes": ", ".join(entry.name for entry in manifest.classes),
        "preprocessing": f"in the graph: (image / 255 - {mean}) / {std}",
        "inputs": _tensors(manifest.inputs),
        "outputs": _tensors(manifest.outputs),
        "sizes": f"batch {_range(shapes.batch)}, height {_range(shapes.height)}, width {_range(shapes.width)}",
        "engine": f"{engine.name}, {engine.provider}, {engine.effective_precision} "
        f"({engine.requested_precision} asked for), opset {manifest.opset}",
        "files": "\n".join(f"{name}  {entry.bytes} bytes  {entry.sha256[:12]}" for name, entry in manifest.files.items()),
        "versions": ", ".join(f"{name} {version}" for name, version in manifest.versions.items()) or "none noted",
        "passport": "present" if (bundle.path / PASSPORT).exists() else "none: the bundle has not been judged",
    }
    table = Table(title=f"{bundle.path}", show_header=False, title_justify="left")
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for what, value in rows.items():
        table.add_row(what, Text(value))
    console = Console()
    console.print(table)
    console.print("Every file is the one that the manifest names. Integrity only: nothing here proves who wrote it.")


def _tensors(entries: tuple[TensorEntry, ...]) -> str:
    return ", ".join(f"{entry.name} {entry.dtype} {list(entry.shape)}" for entry in entries)


def _range(sizes: Range) -> str:
    if sizes.maximum is None:
        return f"from {sizes.minimum}"
    return str(sizes.minimum) if sizes.minimum == sizes.maximum else f"{sizes.minimum} to {sizes.maximum}"
