"""The command `ddcat attack`."""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from ddcat.choices import Device
from ddcat_bench.cli_options import AnySuite, DataRoot, Force, MaxImages, ProtocolName, Split, out_option
from ddcat_export.onnx_options import ClassesFile, Layout, Mean, OnnxOptions, Output, Scale, Std, onnx_options

__all__ = ["attack"]

_SIGMA, _SAMPLES = 0.25, 100  # of certificates


def attack(
    source: Annotated[
        Path,
        typer.Argument(metavar="CHECKPOINT|FILE.onnx|BUNDLE", help="A checkpoint, a run directory, an ONNX file, a bundle."),
    ],
    suite: Annotated[
        AnySuite,
        typer.Option(
            help="quick: BIM n = 1..7; paper: also n = 10, 20, PGD-20; sea: an ensemble of strong attacks; full: all of them, "
            "L2, patches and more; corruptions: no attack, but weather, noise, blur, cameras and codecs."
        ),
    ] = "quick",
    corruption: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only this corruption, of the suite corruptions. Repeat it for several."),
    ] = None,
    certify: Annotated[
        bool, typer.Option("--certify", help="Instead of attacks, certify labels by randomised smoothing.")
    ] = False,
    sigma: Annotated[
        float | None, typer.Option(help="Deviation of the noise of --certify, in [0, 1] units.", show_default="0.25")
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(help="Number of noisy images that --certify counts; ten more choose the classes.", show_default="100"),
    ] = None,
    data_root: DataRoot = None,
    split: Split = None,
    max_images: MaxImages = None,
    batch: Annotated[int, typer.Option(min=1, help="Number of images in a batch.")] = 8,
    epsilon: Annotated[
        list[str] | None,
        typer.Option(
            metavar="E",
            help="Bound of the attacks of sea and full, such as 8/255. Repeat it for several bounds.",
            show_default="4/255 and 8/255",
        ),
    ] = None,
    iterations: Annotated[
        int | None, typer.Option(min=1, help="Number of steps of SEA with each of its losses.", show_default="300")
    ] = None,
    l2: Annotated[
        list[str] | None,
        typer.Option(
            "--l2", metavar="NORM", help="L2 bound of the suite full. Repeat it for several bounds.", show_default="1 and 3"
        ),
    ] = None,
    patch: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SHARE",
            help="Share of the image under the patch of the suite full, such as 2%. Repeat it for several.",
            show_default="1% and 5%",
        ),
    ] = None,
    surrogate: Annotated[
        list[Path] | None,
        typer.Option(metavar="CHECKPOINT", help="Also transfer BIM, n = 1..7, from this checkpoint. Repeat it for several."),
    ] = None,
    protocol: Annotated[
        ProtocolName,
        typer.Option(help="whole: attack whole images; windows: attack sliding windows, as the released code does."),
    ] = "whole",
    seed: Annotated[int, typer.Option(min=0, help="Seed of random starts and of black-box searches.")] = 0,
    device: Annotated[Device, typer.Option(help="Device of the attacks.")] = "auto",
    jobs: Annotated[
        int | None,
        typer.Option(
            help="Number of processes that share the work: one for each GPU, or all on the CPU. Not under torchrun.",
            show_default="1",
        ),
    ] = None,
    out: Annotated[Path | None, out_option("attack-SUITE beside the checkpoint or bundle")] = None,
    force: Force = False,
    classes: ClassesFile = None,
    mean: Mean = None,
    std: Std = None,
    scale: Scale = None,
    output: Output = None,
    layout: Layout = None,
) -> None:
    """
    Attack a checkpoint's main branch and report its mIoU under each attack, in floats and on 8-bit images.

    For an ONNX file of another program, or a bundle, PyTorch runs the graph node by node and attacks it. Corruptions and
    certificates need no gradient, so for a bundle they measure the engine itself.

    Finished parts are kept beside the result, in DIR.work. After an interruption the same command continues. Several processes
    share that folder and give the same result as one; `torchrun -m ddcat attack ...` starts them, too.

    For example:

    - `ddcat attack runs/scenes-ddcat`

    - `ddcat attack runs/camvid-sat --suite paper --data-root /data/camvid --out results/sat`

    - `ddcat attack runs/camvid-sat --suite sea --iterations 50 --epsilon 4/255 --max-images 34`

    - `ddcat attack runs/camvid-sat --surrogate runs/camvid-undefended`

    - `ddcat attack runs/voc-ddcat --suite full --jobs 8`

    - `ddcat attack unet.onnx --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 --data-root /data/roads`

    - `ddcat attack runs/camvid-sat/bundle --suite corruptions --max-images 100`

    - `ddcat attack runs/camvid-gaussian --certify --sigma 0.25 --samples 100`
    """
    from ddcat_bench.arguments import check_model, parse_epsilon
    from ddcat_bench.errors import BenchError
    from ddcat_bench.perturbation.plans import check_l2, check_share
    from ddcat_train.checkpoint_files import check_checkpoint

    options = onnx_options(classes=classes, mean=mean, std=std, scale=scale, output=output, layout=layout)
    check_model(source)
    epsilons = tuple(map(parse_epsilon, epsilon)) if epsilon else None
    norms = tuple(map(check_l2, l2)) if l2 else None
    shares = tuple(map(check_share, patch)) if patch else None
    judges = certify or suite == "corruptions"
    unused = {
        "--epsilon": epsilons is not None and judges,
        "--iterations": iterations is not None and judges,
        "--l2": norms is not None and suite != "full",
        "--patch": shares is not None and suite != "full",
        "--surrogate": surrogate is not None and judges,
        "--protocol": protocol != "whole" and judges,
        "--jobs": jobs is not None and judges,
        "--suite": certify and suite != "quick",
        "--corruption": corruption is not None and (certify or suite != "corruptions"),
        "--sigma": sigma is not None and not certify,
        "--samples": samples is not None and not certify,
    }
    for option, useless in unused.items():
        if useless:
            what = "--certify" if certify else f"the suite {suite}"
            raise BenchError(f"{option} changes nothing for {what}: leave it out")
    if judges:
        _judge(
            source,
            options,
            out,
            certify={"sigma": _SIGMA if sigma is None else sigma, "samples": _SAMPLES if samples is None else samples}
            if certify
            else None,
            names=corruption,
            data_root=data_root,
            split=split,
            max_images=max_images,
            seed=seed,
            device=device,
            force=force,
        )
        return
    for path in surrogate or []:
        check_checkpoint(path)

    from ddcat_bench.attack.job import AttackJob, open_surrogates
    from ddcat_bench.attack.run import run_job
    from ddcat_bench.inputs import open_any, open_split, torch_device

    loaded = open_any(source, options, data_root=data_root)
    if protocol == "windows" and (norms or shares):
        raise BenchError("--l2 and --patch need whole images: leave out either them or --protocol windows")
    if protocol == "windows" and loaded.crop is None:
        raise BenchError(f"--protocol windows: {source} does not record the crop of its training, which they have")
    dataset = open_split(loaded, data_root=data_root, split=split)
    job = AttackJob(
        loaded,
        dataset if protocol == "whole" else dataset.with_long_side(None),
        suite=suite,  # type: ignore[arg-type]  # the other one is judged above
        epsilons=epsilons,
        iterations=iterations,
        l2=norms,
        patches=shares,
        surrogates=open_surrogates(loaded, surrogate or []),
        seed=seed,
        protocol=protocol,
        batch_size=batch,
        max_images=max_images,
        device=torch_device(device),
    )
    run_job(job, out or _folder(loaded.path, f"attack-{suite}"), jobs=jobs, force=force)


def _judge(
    path: Path,
    onnx: OnnxOptions,
    out: Path | None,
    *,
    certify: dict[str, Any] | None,
    names: list[str] | None,
    data_root: Path | None,
    device: Device,
    **options: Any,
) -> None:
    """Judge a model or a bundle's engine by its labels alone: under corruptions, or with certificates."""
    from ddcat.bundle import MANIFEST, Bundle, open_bundle
    from ddcat_bench.arguments import libraries_for
    from ddcat_bench.inputs import open_any

    bundled = (path / MANIFEST).is_file()
    source = open_bundle(path) if bundled else open_any(path, onnx, data_root=data_root)
    with libraries_for(source) if isinstance(source, Bundle) else nullcontext():
        from ddcat_bench.certify.run import run_certify
        from ddcat_bench.corruption.run import run_corruptions
    if certify is None:
        folder = out or _folder(source.path, "corruptions")
        run_corruptions(source, folder, names=names, data_root=data_root, device=device, **options)
    else:
        folder = out or _folder(source.path, "certificate")
        run_certify(source, folder, data_root=data_root, device=device, **certify, **options)


def _folder(path: Path, what: str) -> Path:
    """Name the folder of a result: in the run, or beside a file or a bundle of another name."""
    stem = "" if path.suffix == ".safetensors" else f"{path.stem if path.is_file() else path.name}-"
    return path.parent / f"{stem}{what}"
