import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bench.gpu.measure import attacks_markdown
from ddcat.metrics import Counts, confusion_counts, iou, miou, pixel_accuracy
from ddcat_bench.attack.attacks import AttackBatch
from ddcat_bench.attack.job import AttackJob
from ddcat_bench.attack.plots import curves
from ddcat_bench.attack.probe import FORWARDS
from ddcat_bench.attack.rank_work import attack_rank_work, probe_once
from ddcat_bench.attack.report import attack_markdown, columns
from ddcat_bench.attack.results import AttackResult
from ddcat_bench.attack.scoring import grey_levels
from ddcat_bench.attack.suites import BIM, AttackSpec
from ddcat_bench.describe import describe_data
from ddcat_bench.errors import BenchError
from ddcat_bench.inputs import main_branch, open_split
from ddcat_bench.result_io import read_result, to_json
from ddcat_bench.result_schema import Scores
from ddcat_bench.work_units import open_units
from ddcat_train.attacks import Model, bim
from ddcat_train.checkpoints import Checkpoint
from ddcat_train.data import Dataset
from ddcat_train.data.loader import evaluation_batches
from ddcat_train.pixels import to_8_bit
from ddcat_train.seeds import derive_seed
from tests.bench.suite import row_of, run_suite
from tests.commands import call, refusal

Batch = tuple[torch.Tensor, torch.Tensor]  # images (N, 3, H, W) in [0, 1], labels (N, H, W)

CPU = torch.device("cpu")
COLUMNS = ["clean", "n = 1", "n = 2", "n = 3", "n = 4", "n = 5", "n = 6", "n = 7"]


@pytest.fixture(scope="module")
def paper(checkpoint: Checkpoint, scenes: Dataset) -> AttackResult:
    return run_suite(AttackJob(checkpoint, scenes, suite="paper", batch_size=2))


@pytest.fixture(scope="module")
def quick(checkpoint: Checkpoint, scenes: Dataset) -> AttackResult:
    return run_suite(AttackJob(checkpoint, scenes, suite="quick", batch_size=2))


@pytest.fixture(scope="module")
def batches(scenes: Dataset) -> list[Batch]:
    """The images and labels in the batches of `paper`, for rounding differs with the batch, and sign() makes steps of it."""
    return [
        (images.contiguous(memory_format=torch.channels_last), labels)
        for _, images, labels in evaluation_batches(scenes, batch_size=2)
    ]


def test_rows_are_those_of_the_suites(paper: AttackResult, quick: AttackResult) -> None:
    assert columns([paper]) == [*COLUMNS, "n = 10", "n = 20", "PGD-20 at 8/255"]
    assert [row.eight_bit for row in paper.rows] == [False] * 11 + [True] * 10
    assert columns([quick]) == COLUMNS
    assert [row for row in paper.rows if row.label in COLUMNS] == list(quick.rows)


def test_what_the_paper_says_of_longer_attacks_is_judged(paper: AttackResult) -> None:
    [claim] = paper.claims
    found = {row.steps: row.scores.miou for row in paper.rows if row.name == "BIM" and not row.eight_bit}
    assert claim.held == (abs(found[10] - found[7]) <= 0.025 and abs(found[20] - found[7]) <= 0.025)
    assert f"n = 20: {found[20]:.3f} ({found[20] - found[7]:+.3f})" in claim.evidence
    text = attack_markdown(paper)
    assert f"{'Holds' if claim.held else 'Does **not** hold'}: {claim.claim}" in text


def test_trajectory_counts_are_those_of_separate_attacks(
    paper: AttackResult, checkpoint: Checkpoint, batches: list[Batch], scenes: Dataset
) -> None:
    network = main_branch(checkpoint, CPU)
    for n in range(8):
        row = paper.rows[n]
        assert row.steps == n
        expected: list[Counts] = []
        for images, labels in batches:
            attacked = bim(network, images, labels, epsilon=0.03, alpha=0.01, steps=n) if n else images
            expected += _count(labels, network(attacked).argmax(1), len(scenes.classes))
        np.testing.assert_array_equal(row.scores.array(), expected)


def test_pgd_starts_from_the_seed_of_the_images_index(
    paper: AttackResult, checkpoint: Checkpoint, batches: list[Batch], scenes: Dataset
) -> None:
    network = main_branch(checkpoint, CPU)
    row = row_of(paper, "PGD-20 at 8/255")
    expected: list[Counts] = []
    for images, labels in batches:
        seeds = torch.tensor([derive_seed(0, len(expected) + own) for own in range(len(images))])
        attacked = bim(network, images, labels, epsilon=8 / 255, alpha=2 / 255, steps=20, start="random", seeds=seeds)
        expected += _count(labels, network(attacked).argmax(1), len(scenes.classes))
    np.testing.assert_array_equal(row.scores.array(), expected)


def test_no_two_runs_share_a_seed(
    checkpoint: Checkpoint, scenes: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []

    def judge(maker: Model, judged: Model, plan: AttackSpec, victims: AttackBatch, classes: int) -> Counts:
        seeds.extend(victims.seeds.tolist())
        return np.zeros(0, np.int64)

    monkeypatch.setattr("ddcat_bench.attack.rank_work.score_whole_images", judge)
    runs = (0, 1, 1024, 4096, 2**32)
    for seed in runs:
        evaluation = AttackJob(checkpoint, scenes, seed=seed)
        attack_rank_work(evaluation, open_units(tmp_path / str(seed), evaluation.identity()))
    assert len({seed % 2**32 for seed in seeds}) == len(runs) * len(scenes)  # a generator looks at no more bits


def test_8_bit_rows_are_those_of_images_that_went_through_png(
    paper: AttackResult, checkpoint: Checkpoint, batches: list[Batch], scenes: Dataset
) -> None:
    network = main_branch(checkpoint, CPU)
    for n in (1, 7):
        row = row_of(paper, f"n = {n}", eight_bit=True)
        expected: list[Counts] = []
        for images, labels in batches:
            attacked = bim(network, images, labels, epsilon=0.03, alpha=0.01, steps=n)
            received = np.stack([_through_png(image) for image in to_8_bit(attacked, images)])
            levels = received.astype(int) - (images * 255).round().int().permute(0, 2, 3, 1).numpy()
            assert np.abs(levels).max() == min(7, int(2.55 * n))
            pixels = torch.from_numpy(received).permute(0, 3, 1, 2).float() / 255
            expected += _count(labels, network(pixels).argmax(1), len(scenes.classes))
        np.testing.assert_array_equal(row.scores.array(), expected)


def test_bounds_in_grey_levels(paper: AttackResult) -> None:
    assert [grey_levels(e) for e in (0.0, 0.03, 8 / 255, 0.99 / 255)] == [0, 7, 8, 0]
    bounds = {(row.name, row.eight_bit): row.grey_levels for row in paper.rows}
    assert bounds == {
        ("clean", False): 0,
        ("BIM", False): pytest.approx(7.65),
        ("BIM", True): 7,
        ("PGD", False): pytest.approx(8),
        ("PGD", True): 8,
    }


def test_every_figure_follows_from_the_counts_in_the_file(paper: AttackResult, tmp_path: Path) -> None:
    (tmp_path / "attack.json").write_text(to_json(paper))
    read = read_result(tmp_path / "attack.json", AttackResult)
    assert read == paper
    for row in read.rows:
        counts = row.scores.array()
        assert counts.shape == (len(read.data.names), len(read.data.classes), 3)
        assert row.scores.miou == miou(counts.sum(0))
        assert row.scores.pixel_accuracy == pixel_accuracy(counts.sum(0))
        assert row.scores.mean_image_miou == pytest.approx(np.mean([miou(image) for image in counts]))
        np.testing.assert_array_equal(np.array(row.scores.class_iou, dtype=float), iou(counts.sum(0)))


def test_absent_classes_and_ignored_images_are_left_out() -> None:
    counts = np.zeros((3, 3, 3), np.int64)
    counts[0, 0] = (6, 2, 0)
    counts[0, 1] = (2, 0, 2)
    counts[1, 0] = (4, 0, 0)  # image 2 is ignored as a whole, class 2 occurs nowhere
    scores = Scores.of(counts)
    assert scores.class_iou == (10 / 12, 0.5, None)
    assert scores.miou == pytest.approx((10 / 12 + 0.5) / 2)
    assert scores.mean_image_miou == pytest.approx(((6 / 8 + 0.5) / 2 + 1) / 2)
    with pytest.raises(BenchError, match="ignored"):
        Scores.of(np.zeros((2, 3, 3), np.int64))


def test_limit_takes_images_from_all_of_the_split(checkpoint: Checkpoint, scenes: Dataset) -> None:
    done: list[int] = []
    result = run_suite(AttackJob(checkpoint, scenes, max_images=2, batch_size=1), advance=done.append)
    assert result.data.names == (scenes.pairs[1].name, scenes.pairs[3].name)
    assert result.data.split_images == 5
    assert sum(done) == 2 * BIM.forwards
    assert done.count(1) > 2 * 7  # it moves within an image


def test_tables_and_plots_need_nothing_but_the_result(paper: AttackResult) -> None:
    text = attack_markdown(paper)
    for label in columns([paper]):
        [cells] = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith(f"| {label} |")]
        pair = [row_of(paper, label, eight_bit=eight_bit) for eight_bit in (False, True)]
        figures = [(r.scores.miou, r.scores.foreground_miou, r.scores.mean_image_miou, r.pixel_accuracy) for r in pair]
        assert [cell.strip() for cell in cells[1:]] == [
            f"{figure:.3f}" for pair in zip(*figures, strict=True) for figure in pair
        ]
    assert "7/255" in text
    assert all(f"| {name} |" in text for name in paper.data.classes)
    picture = Image.open(io.BytesIO(curves(paper)))
    picture.verify()
    assert picture.format == "PNG"


def test_runs_side_by_side(paper: AttackResult, quick: AttackResult) -> None:
    other = quick.model_copy(update={"checkpoint": quick.checkpoint.model_copy(update={"method": "undefended"})})
    text = attacks_markdown([paper, other])
    rows = [line for line in text.splitlines() if line.startswith(("| sat", "| undefended |"))]
    assert len(rows) == 4  # both runs, floats and 8 bits
    assert rows[1].endswith("| - |")  # no PGD there
    assert "PGD-20 at 8/255, start: random" in attacks_markdown([other, paper])
    twice = attacks_markdown([quick, quick])
    assert f"sat ({quick.checkpoint.path})" in twice
    fewer = quick.model_copy(update={"data": quick.data.model_copy(update={"names": quick.data.names[:2]})})
    with pytest.raises(BenchError, match="same images"):
        attacks_markdown([quick, fewer])
    with pytest.raises(BenchError, match="no results"):
        attacks_markdown([])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"schema_version": 1', '"schema_version": 2', "schema_version"),
        ('"kind": "attack"', '"kind": "speed"', "kind"),
        ('"suite": "paper"', '"suite": "paper", "surplus": 1', "surplus"),
        ('"steps": 1', '"steps": "1"', "steps"),
        ("{", "", "JSON"),
    ],
)
def test_other_files_are_refused(paper: AttackResult, tmp_path: Path, old: str, new: str, message: str) -> None:
    file = tmp_path / "attack.json"
    file.write_text(to_json(paper).replace(old, new, 1))
    with pytest.raises(BenchError, match=message):
        read_result(file, AttackResult)


def test_other_data_is_refused(checkpoint: Checkpoint, scenes: Dataset, other_scenes: Callable[[int], Path]) -> None:
    assert open_split(checkpoint) == scenes
    with pytest.raises(BenchError, match="not the one"):
        open_split(checkpoint, data_root=other_scenes(3))
    root = other_scenes(5)
    assert open_split(checkpoint, data_root=root).root == root  # the same list elsewhere
    train = open_split(checkpoint, split="train")
    assert not describe_data(train, [], usual_list=checkpoint.data.list_sha256).usual_split
    classes = root / "classes.yaml"
    classes.write_text(classes.read_text().replace(scenes.classes.names[1], "moon"))
    with pytest.raises(BenchError, match="moon"):
        open_split(checkpoint, data_root=root)


def test_data_is_judged_at_the_size_of_evaluation(checkpoint: Checkpoint) -> None:
    description = checkpoint.description
    config = description.config
    sized = config.model_copy(update={"data": config.data.model_copy(update={"long_side": 64, "val_long_side": 96})})
    judged = replace(checkpoint, description=description.model_copy(update={"config": sized}))
    assert [open_split(judged, split=split).long_side for split in ("val", "train")] == [96, 96]


def test_the_command(run_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "new" / "attack"
    words = ["ddcat", "attack", run_directory, "--max-images", 1, "--device", "cpu", "--out"]
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    done = call(*words, out)
    assert done.returncode == 0
    assert not torch.backends.cudnn.allow_tf32  # fp32 means fp32
    assert sorted(file.name for file in out.iterdir()) == ["attack.json", "attack.md", "attack.png", "panels.png"]
    result = read_result(out / "attack.json", AttackResult)
    assert attack_markdown(result) == (out / "attack.md").read_text()
    told = done.stdout
    assert "| attack | mIoU |" in told
    clean, last = (row_of(result, label).scores.miou for label in ("clean", "n = 7"))
    first = next(line for line in told.splitlines() if line and not line.startswith(">"))  # but for alarms
    assert first == f"sat ({result.checkpoint.architecture}): mIoU {clean:.3f} -> {last:.3f} at n = 7"
    assert "IoU of each class" not in told  # which is in attack.md
    assert len([line for line in told.splitlines() if not line.startswith(">")]) < 22
    assert "exists already" in refusal(*words, out)
    assert refusal(*words, tmp_path / "none", "--suite", "quik") == (
        "invalid value for '--suite': 'quik' is not one of 'quick', 'paper', 'sea', 'full', 'corruptions'; see ddcat "
        "attack --help"
    )
    assert not (tmp_path / "none").exists()


def _count(labels: torch.Tensor, predictions: torch.Tensor, classes: int) -> list[Counts]:
    return [confusion_counts(t, p, classes) for t, p in zip(labels.numpy(), predictions.numpy(), strict=True)]


def _through_png(image: torch.Tensor) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, format="PNG")
    return np.array(Image.open(file))  # (H, W, 3)


def test_the_probe_looks_at_no_more_images_than_are_judged_and_tells_of_its_progress(
    checkpoint: Checkpoint, scenes: Dataset, tmp_path: Path
) -> None:
    evaluation = AttackJob(checkpoint, scenes, max_images=2)
    units = open_units(tmp_path, evaluation.identity())
    told: list[int] = []
    found = probe_once(evaluation, units, advance=told.append)
    assert found.images == evaluation.probed == 2
    assert len(told) > 100  # while it works, not at the end
    assert sum(told[:-1]) >= 0.9 * FORWARDS * 2  # what it is said to take is what it takes
    assert sum(told) == FORWARDS * 2
    assert probe_once(evaluation, units) == found
    assert AttackJob(checkpoint, scenes).probed == min(6, len(scenes))
