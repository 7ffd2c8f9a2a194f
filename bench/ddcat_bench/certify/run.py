"""Certify a checkpoint or a bundle, and publish the result."""

from pathlib import Path

import numpy as np

from ddcat.bundle import Bundle
from ddcat.choices import Device
from ddcat.classes import colourise
from ddcat.metrics import iou, miou, pixel_accuracy
from ddcat.progress import progress
from ddcat_bench.certify.measure import CertifyJob, certify_image, measure
from ddcat_bench.certify.results import CertificateResult
from ddcat_bench.certify.smoothing import radius
from ddcat_bench.describe import describe_data, describe_environment
from ddcat_bench.judged import judged, open_data
from ddcat_bench.publish import claim, publish
from ddcat_bench.templates import render
from ddcat_bench.work_units import forget_other, remove_work, work_folder
from ddcat_train.reference import Reference
from ddcat_train.run import image_grid
from ddcat_train.seeds import derive_seed

__all__ = ["certificate_markdown", "run_certify"]


def run_certify(
    source: Reference | Bundle,
    folder: Path,
    *,
    sigma: float,
    samples: int,
    data_root: Path | None = None,
    split: str | None = None,
    max_images: int | None = None,
    seed: int = 0,
    device: Device = "auto",
    force: bool = False,
) -> CertificateResult:
    """
    Certify, count and publish; finished images are kept beside the result until then.

    The noise has the standard deviation `sigma`, in [0, 1] units. So many samples are counted, beside ten that choose each
    pixel's class. All other parameters are those of `ddcat_bench.corruption.run.run_corruptions`. Raises BenchError, DataError,
    EngineError.
    """
    work = work_folder(folder)
    with claim(folder, "certificate", force=force):
        dataset = open_data(source, data_root=data_root, split=split)
        with judged(source, device) as subject:
            job = CertifyJob(
                subject.predict,
                subject.digest,
                dataset,
                sigma=sigma,
                samples=samples,
                batch_size=subject.batch_size,
                max_images=max_images,
                seed=seed,
            )
            if force:
                forget_other(work, job.identity())
            with progress("certifying", job.labelled, unit="images") as advance:
                found = measure(job, work, advance)
            sheet = _sheet(job)
        clean, smoothed, certified = (counts.sum(0) for counts in (found.clean, found.smoothed, found.certified))
        result = CertificateResult(
            checkpoint=subject.checkpoint,
            bundle=subject.bundle,
            data=describe_data(dataset, found.names, usual_list=subject.usual_list),
            seed=seed,
            sigma=sigma,
            choosing=job.choosing,
            samples=samples,
            tau=job.tau,
            alpha=job.alpha,
            radius=radius(sigma, job.tau),
            clean_miou=miou(clean),
            clean_accuracy=pixel_accuracy(clean),
            smoothed_miou=miou(smoothed),
            certified_miou=miou(certified),
            certified_accuracy=pixel_accuracy(certified),
            abstained=found.abstained / found.labelled,
            class_iou=tuple(None if np.isnan(value) else float(value) for value in iou(certified)),
            environment=describe_environment(subject.device, found.seconds),
        )
        publish(folder, "certificate", result, certificate_markdown(result), {"certified.png": sheet}, force=force)
        remove_work(work)
    return result


def certificate_markdown(result: CertificateResult) -> str:
    """Write the figures, what they claim and what they do not."""
    return render(Path(__file__).with_name("certificate.md"), result=result)


def _sheet(job: CertifyJob) -> bytes:
    """Draw one image, the labels for it, and those that are certified. A PNG."""
    data = job.dataset
    index = len(data) // 2
    sample = data.read(index)
    base = job.predict(sample.image[None])[0].astype(np.uint8)
    smoothed, certified = certify_image(job, sample.image, seed=derive_seed(job.seed, index))
    row = [
        image_grid.Picture(sample.image, sample.name, smooth=True),
        *(image_grid.Picture(colourise(labels, data.classes), "") for labels in (base, smoothed, certified, sample.labels)),
    ]
    headings = ("image", "prediction", "smoothed", "certified; grey: none", "truth")
    title = f"certified at an L2 norm of {radius(job.sigma, job.tau):.3f}"
    return image_grid.to_png(image_grid.draw_sheet(title, headings, [row], data.classes))
