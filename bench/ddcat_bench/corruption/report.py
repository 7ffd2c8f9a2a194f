"""The result of the suite `corruptions` for readers: a table, a plot, and pictures."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ddcat.classes import colourise
from ddcat.metrics import confusion_counts, pixel_accuracy
from ddcat_bench.corruption.measure import CorruptionJob
from ddcat_bench.corruption.results import CorruptionResult, Group
from ddcat_bench.figures import figure_png
from ddcat_bench.markdown import number, table
from ddcat_bench.templates import render
from ddcat_train.corruptions import SEVERITIES, corrupt
from ddcat_train.run import image_grid

__all__ = ["corruption_brief", "corruption_markdown", "corruption_plot", "corruption_sheet"]

_GROUPS: dict[Group, str] = {
    "common": "Common corruptions",
    "extra": "Extra corruptions",
    "capture": "Changes of camera, codec and resizing",
}
_SHOWN = ("gaussian_noise", "motion_blur", "snow", "fog", "jpeg_compression", "underexposed")
_SHOWN_SEVERITY = 3


def corruption_brief(result: CorruptionResult) -> str:
    """Write the short answer: the mean of each group beside clean, and the five worst corruptions."""
    means = {name: float(np.mean([one.miou for one in result.of(name)])) for name in (row.name for row in result.rows)}
    worst = sorted(means, key=lambda name: means[name])[:5]
    return render(Path(__file__).with_name("brief.md"), result=result, groups=_GROUPS, means=means, worst=worst)


def corruption_markdown(result: CorruptionResult) -> str:
    """Write all figures, and where they come from."""
    tables = []
    for group, title in _GROUPS.items():
        rows = [
            [name, *(number(row.miou) for row in result.of(name)), number(float(np.mean([r.miou for r in result.of(name)])))]
            for name in result.names(group)
        ]
        if rows:
            means = [number(result.mean(group, severity)) for severity in SEVERITIES]
            rows.append([f"**mean**{result.part(group)}", *means, number(result.mean(group))])
            tables.append(table([title, *(f"severity {severity}" for severity in SEVERITIES), "mean"], rows))
    wide = [row.high - row.low for row in result.rows if row.low is not None and row.high is not None]
    template = Path(__file__).with_name("corruptions.md")
    return render(template, result=result, brief=corruption_brief(result), tables=tables, widest=max(wide, default=None))


def corruption_plot(result: CorruptionResult) -> bytes:
    """Draw mIoU over severity: a thin line for each corruption, a thick one for the mean of each group. A PNG."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for colour, (group, title) in enumerate(_GROUPS.items()):
        for name in result.names(group):
            points = [result.clean.miou, *(row.miou for row in result.of(name))]
            axes.plot(range(len(points)), points, color=f"C{colour}", alpha=0.25, linewidth=1)
        if result.names(group):
            mean = [result.clean.miou, *(result.mean(group, severity) or 0.0 for severity in SEVERITIES)]
            axes.plot(range(len(mean)), mean, color=f"C{colour}", linewidth=2.5, marker="o", label=f"mean: {title.lower()}")
    axes.set_xticks(range(len(SEVERITIES) + 1), ["clean", *map(str, SEVERITIES)])
    axes.set_xlabel("severity")
    axes.set_ylabel("mIoU")
    axes.set_ylim(-0.02, 1)
    axes.set_title(f"{result.title}: {result.data.name} {result.data.split}, {len(result.data.names)} images", fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure_png(figure)


def corruption_sheet(job: CorruptionJob, title: str) -> bytes:
    """Draw one image under some corruptions, and what is predicted for each. A PNG."""
    data = job.dataset
    index = len(data) // 2
    sample = data.read(index)
    shown = [name for name in _SHOWN if name in job.names] or list(job.names[:6])
    images = {"clean": sample.image}
    for name in shown:
        seed = job.seed_of(index, name, _SHOWN_SEVERITY)
        images[name] = corrupt(sample.image, name, severity=_SHOWN_SEVERITY, seed=seed)
    rows = []
    for name, image in images.items():
        labels = job.predict(image[None])[0].astype(np.uint8)
        right = pixel_accuracy(confusion_counts(sample.labels, labels, len(data.classes)))
        rows.append(
            [
                image_grid.Picture(image, name, smooth=True),
                image_grid.Picture(colourise(labels, data.classes), "" if np.isnan(right) else f"{right:.0%} right"),
                image_grid.Picture(colourise(sample.labels, data.classes), ""),
            ]
        )
    sheet = image_grid.draw_sheet(f"{title}; severity {_SHOWN_SEVERITY}", ("image", "prediction", "truth"), rows, data.classes)
    return image_grid.to_png(sheet)
