"""`ddcat data`: checking and generating data sets."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ddcat.cli_support import parse_size
from ddcat_train.choices import DatasetName
from ddcat_train.config import load_config
from ddcat_train.errors import CheckpointError, DataError

if TYPE_CHECKING:
    from ddcat.preprocess import FileRule

__all__ = ["app"]

_SMALLEST = 32  # pixels of a side of a generated scene

app = typer.Typer(
    help="Check and generate data sets; import weights of other programs.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


@app.command("check")
def check_command(
    name: Annotated[DatasetName, typer.Argument(help="The layout of the data set.")],
    root: Annotated[Path, typer.Argument(help="The folder that holds the data set.")],
    split: Annotated[str, typer.Option(help="Split to check.")] = "train",
    long_side: Annotated[int | None, typer.Option(min=1, help="Resize to this long side, as training will.")] = None,
    bands: Annotated[
        str | None,
        typer.Option(
            help="Bands of the image files, as in data.bands: how many there are, or the numbers of those to read.",
            metavar="N|B,B,...",
        ),
    ] = None,
    values: Annotated[
        str | None,
        typer.Option(
            help="For images of 16 bits, as in data.values: the two values that become 0 and 255.", metavar="LOW,HIGH"
        ),
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write the result to this file, too.", metavar="FILE")] = None,
) -> None:
    """
    Read every pair as training would, and report contents, faults and their files.

    Exit status 0: sound, perhaps with warnings; 2: faults.

    For example:

    - `ddcat data check camvid data/camvid --split val`

    - `ddcat data check folder data/fields --bands 5 --values 0,10000`
    """
    from rich.console import Console

    from ddcat.atomic_files import write_json
    from ddcat.progress import progress
    from ddcat.text import printable

    if not root.expanduser().is_dir():
        hint = f"make it with 'ddcat data scenes {root}'" if name == "scenes" else "name the one that holds the data set"
        raise DataError(f"{root} is not a folder: {hint}")

    from ddcat_train.data import list_dataset
    from ddcat_train.data.check import as_table, check, lines_of

    rule = _rule_of_files(name, bands, values).with_long_side(long_side)
    dataset = list_dataset(name, root, split, rule=rule)
    with progress("checking", len(dataset)) as advance:
        report = check(dataset, advance=advance)
    if json is not None:
        write_json(json, report.to_json())
    typer.echo(printable(f"{name} {split} at {root}"))
    Console().print(as_table(report))
    for line in lines_of(report):
        typer.echo(line)
    if report.faults:
        plural = "s" if len(report.faults) > 1 else ""
        raise DataError(f"{len(report.faults)} fault{plural} in {name} {split} at {root}, listed above")


def _rule_of_files(name: str, bands: str | None, values: str | None) -> "FileRule":
    """Return the rule by which files of some bands and values are read."""
    from ddcat.preprocess import FileRule

    if bands is not None and name != "folder":
        raise DataError(f"--bands {bands}: the layout {name} has images in RGB; use the layout folder")
    option = ""
    try:
        option = f"--bands {bands}: expected a number from 1 to 16, or bands counted from 1, such as 4,3,2"
        chosen = None if bands is None else int(bands) if "," not in bands else tuple(map(int, bands.split(",")))
        rule = FileRule(bands=chosen)
        option = f"--values {values}: expected two ascending numbers from 0 to 65535, such as 0,10000"
        if values is None:
            return rule
        low, high = map(int, values.split(","))
        return FileRule(bands=chosen, values=(low, high))
    except ValueError as cause:  # pydantic's, too
        raise DataError(option) from cause


@app.command()
def scenes(
    out: Annotated[Path, typer.Argument(help="The folder to make; it must not exist or be empty.")],
    train: Annotated[int, typer.Option(min=1, help="Scenes to train on.")] = 500,
    val: Annotated[int, typer.Option(min=1, help="Scenes to evaluate on.")] = 100,
    size: Annotated[str, typer.Option(help="Size of the images.", metavar="HEIGHTxWIDTH")] = "96x96",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the scenes.")] = 0,
) -> None:
    """
    Generate street scenes of 6 classes, laid out as Pascal VOC; the same seed gives the same scenes.

    For example:

    - `ddcat data scenes data/scenes --train 500 --val 100 --size 96x96`
    """
    from ddcat.atomic_files import check_absent
    from ddcat.progress import progress

    sides = parse_size(size)
    if min(sides) < _SMALLEST:
        raise DataError(f"--size {size}: use {_SMALLEST}x{_SMALLEST} or more")
    check_absent(out)

    from ddcat_train.data.synthetic.generate import write_scenes

    with progress("generating", train + val, unit="scenes") as advance:
        write_scenes(out, train=train, val=val, size=sides, seed=seed, advance=advance)
    typer.echo(f"{train} train and {val} val scenes of {size} in {out}")


@app.command("import-checkpoint")
def import_checkpoint_command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .pth file of weights.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The .safetensors file to write; it must not exist.")],
    config: Annotated[
        str | None,
        typer.Option(
            metavar="PRESET|CONFIG.yaml",
            help="Configuration that the segmenter was trained with.",
            show_default="the paper's, where the file shows which",
        ),
    ] = None,
    data_root: Annotated[Path | None, typer.Option(help="Folder of the segmenter's data set.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one value of it; may be given again.")
    ] = None,
) -> None:
    """
    Import weights: a segmenter of the released DDC-AT or SAT code, of semseg or of mmsegmentation, or a backbone.

    A segmenter becomes a checkpoint for ddcat attack, ddcat export and model.pretrained. A ResNet in the layout of semseg or of
    torchvision, torchvision's MobileNetV2, an EfficientNet-Lite or a ConvNeXt, robust ones included, becomes a file for
    model.pretrained. Only tensors are read, and all of them must fit.

    For example:

    - `ddcat data import-checkpoint ddcat_voc.pth ddcat.safetensors`

    - `ddcat data import-checkpoint sat.pth sat.safetensors --config voc-pspnet50-sat --set attack.epsilon=8/255`

    - `ddcat data import-checkpoint resnet50.pth resnet50.safetensors`
    """
    if not file.is_file():
        raise CheckpointError(f"no such file: {file}")
    if out.suffix != ".safetensors":
        raise CheckpointError(f"{out} does not end in .safetensors: use {out.with_suffix('.safetensors')}")
    for path in (out, out.with_suffix(".json")):
        if path.exists():
            raise CheckpointError(f"{path} exists already: name another file, or remove it first")
    if config is not None:
        load_config(config, overrides or ())

    from ddcat_train.weight_import import import_checkpoint

    typer.echo(import_checkpoint(file, out, like=config, data_root=data_root, overrides=overrides or ()))
