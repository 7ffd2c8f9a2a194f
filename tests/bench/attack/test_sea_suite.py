"""The sea suite: three losses, and the worst of them."""

from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from ddcat.metrics import Counts, confusion_counts, miou
from ddcat_bench.arguments import parse_epsilon
from ddcat_bench.attack import plots
from ddcat_bench.attack.job import AttackJob, count_class_pixels, open_surrogates
from ddcat_bench.attack.report import attack_markdown, columns
from ddcat_bench.attack.results import AttackName, AttackResult
from ddcat_bench.attack.suites import SEA_LOSSES, attack_specs
from ddcat_bench.errors import BenchError
from ddcat_bench.inputs import main_branch, open_split
from ddcat_bench.result_io import to_json
from ddcat_bench.worst_case import lowest_accuracy, worst_case
from ddcat_train.attacks import bim, sea
from ddcat_train.checkpoints import Checkpoint
from ddcat_train.data import Dataset
from ddcat_train.data.loader import evaluation_batches
from ddcat_train.seeds import derive_seed
from tests.bench.suite import row_of, run_suite

SIX, TWO = 6 / 255, 2 / 255


@pytest.fixture(scope="module")
def result(checkpoint: Checkpoint, scenes: Dataset) -> AttackResult:
    return run_suite(AttackJob(checkpoint, scenes, suite="sea", iterations=4, epsilons=(SIX, TWO), batch_size=3, seed=2))


def test_the_suite_has_three_losses_at_two_bounds_and_cheap_attacks_beside() -> None:
    clean, *attacks = attack_specs("sea")
    assert clean.cases == (("clean", 0),)
    beside = [("PGD", (20,)), ("SegPGD", (20,)), ("CosPGD", (20,))]
    expected = [(name, epsilon, n) for epsilon in (4 / 255, 8 / 255) for name, n in [("SEA", (300,)), *beside]]
    assert [(plan.name, plan.epsilon, plan.counted) for plan in attacks] == expected
    assert [case.name for case in attacks[0].cases] == list(SEA_LOSSES)


def test_rows_and_worst_cases(result: AttackResult) -> None:
    losses, beside = [f"{loss}-4" for loss in SEA_LOSSES], ["PGD-20", "SegPGD-20", "CosPGD-20"]
    assert columns([result]) == ["clean", *(f"{name} at {bound}/255" for bound in (6, 2) for name in (*losses, *beside))]
    assert [(case.label, case.eight_bit, case.members) for case in result.worst_cases] == [
        (f"{name} at {bound}/255", eight_bit, tuple(f"{member} at {bound}/255" for member in members))
        for bound in (2, 6)
        for eight_bit in (False, True)
        for name, members in (("SEA", losses), ("worst of all", [*losses, *beside]))
    ]
    bounds = plots._bounds(result)
    assert set(bounds) == {*losses, *beside, "SEA", "worst of all"}
    assert bounds["SEA"] == {SIX: "SEA at 6/255", TWO: "SEA at 2/255"}
    assert [*plots.plots(result)] == ["epsilon.png"]
    assert plots.plots(result)["epsilon.png"].startswith(b"\x89PNG")
    for case in result.worst_cases:
        rows = [result.find(label, eight_bit=case.eight_bit) for label in case.members]
        counts = np.stack([row.scores.array() for row in rows if row is not None])
        assert case.chosen == tuple(worst_case(counts))
        assert case.chosen_for_accuracy == tuple(lowest_accuracy(counts))
        images = range(counts.shape[1])
        np.testing.assert_array_equal(case.scores.array(), counts[list(case.chosen), images])
        assert case.scores.miou <= min(miou(one.sum(0)) for one in counts)
        total = counts[list(case.chosen_for_accuracy), images].sum((0, 1))
        assert case.pixel_accuracy == total[0] / (total[0] + total[2])


def test_counts_are_those_of_the_attack_itself(result: AttackResult, checkpoint: Checkpoint, scenes: Dataset) -> None:
    network = main_branch(checkpoint, torch.device("cpu"))
    pixels = torch.from_numpy(count_class_pixels(checkpoint, scenes).counts)
    expected: dict[str, list[Counts]] = {loss: [] for loss in SEA_LOSSES}
    place = 0
    for names, images, labels in evaluation_batches(scenes, batch_size=3):
        seeds = torch.tensor([derive_seed(2, place + own) for own in range(len(names))])
        place += len(names)
        batch = images.contiguous(memory_format=torch.channels_last)
        found = sea(network, batch, labels, epsilon=SIX, steps=4, seeds=seeds, class_pixels=pixels)
        for loss in SEA_LOSSES:
            predictions = network(found[loss]).argmax(1)
            expected[loss] += [
                confusion_counts(t, p, len(scenes.classes)) for t, p in zip(labels.numpy(), predictions.numpy(), strict=True)
            ]
    for loss in SEA_LOSSES:
        row = row_of(result, f"{loss}-4 at 6/255")
        np.testing.assert_array_equal(row.scores.array(), expected[loss])


def test_classes_are_balanced_by_the_training_split(
    result: AttackResult, checkpoint: Checkpoint, scenes: Dataset, scenes_root: Path, scenes_copy: Path
) -> None:
    counted = np.zeros(len(scenes.classes), np.int64)
    train = open_split(checkpoint, split="train")
    for index in range(len(train)):
        labels = train.read(index).labels
        counted += [(labels == value).sum() for value in range(len(counted))]
    found = count_class_pixels(checkpoint, scenes)
    np.testing.assert_array_equal(found.counts, counted)
    assert found.source == "the labels of the 2 images of the train split" == result.class_pixels
    for file in (scenes_copy / "ImageSets").rglob("train.txt"):
        file.unlink()
    other = count_class_pixels(checkpoint, open_split(checkpoint, data_root=scenes_copy))
    assert other.source.startswith("the labels of the 5 images of the val split, for the train split cannot be read: ")


def test_it_is_all_in_the_file_and_in_the_markdown(result: AttackResult) -> None:
    assert AttackResult.model_validate_json(to_json(result)) == result
    text = attack_markdown(result)
    [line] = [line for line in text.splitlines() if line.startswith("| **SEA at 6/255**")]
    one, eight_bit = (case for case in result.worst_cases if (case.name, case.epsilon) == ("SEA", SIX))
    cells = [cell.strip(" *") for cell in line.split("|")[2:-1]]
    assert cells[:2] == [f"{one.scores.miou:.3f}", f"{eight_bit.scores.miou:.3f}"]
    assert cells[-2:] == [f"{one.pixel_accuracy:.3f}", f"{eight_bit.pixel_accuracy:.3f}"]
    assert "foreground mIoU is the mean over the other classes" in text
    assert "seed: 2" in text


def test_bounds_are_read() -> None:
    assert [parse_epsilon(text) for text in ("8/255", "0.03", "0.5/255")] == [8 / 255, 0.03, 0.5 / 255]
    for text in ("8/", "x", "0", "2", "-1/255", "1/0", "nan"):
        with pytest.raises(BenchError, match="8/255"):
            parse_epsilon(text)


def test_transfer_is_bim_made_on_the_other_checkpoint(
    checkpoint: Checkpoint, other_checkpoint: Checkpoint, scenes: Dataset
) -> None:
    result = run_suite(AttackJob(checkpoint, scenes, surrogates=(other_checkpoint,), batch_size=5))
    made_on, judged = (main_branch(one, torch.device("cpu")) for one in (other_checkpoint, checkpoint))
    [(_, images, labels)] = evaluation_batches(scenes, batch_size=5)
    batch = images.contiguous(memory_format=torch.channels_last)
    for n in (1, 7):
        row = row_of(result, f"transfer n = {n} from undefended {other_checkpoint.sha256()[:8]}")
        assert row.substitute is not None
        assert row.substitute.sha256 == other_checkpoint.sha256()
        predictions = judged(bim(made_on, batch, labels, steps=n)).argmax(1).numpy()
        expected = [confusion_counts(t, p, len(scenes.classes)) for t, p in zip(labels.numpy(), predictions, strict=True)]
        np.testing.assert_array_equal(row.scores.array(), expected)
    assert "transfer n = N from undefended" in attack_markdown(result)
    worst = next(case for case in result.worst_cases if not case.eight_bit)
    assert worst.label == "worst of all at 7.65/255"
    assert len(worst.members) == 14


def test_substitutes_must_fit(checkpoint: Checkpoint, other_checkpoint: Checkpoint, run_directory: Path) -> None:
    paths = [other_checkpoint.path, run_directory]
    assert [one.sha256() for one in open_surrogates(checkpoint, paths)] == [other_checkpoint.sha256(), checkpoint.sha256()]
    with pytest.raises(BenchError, match="named twice"):
        open_surrogates(checkpoint, [run_directory, run_directory])


def test_a_model_of_masked_gradients_rings(result: AttackResult, checkpoint: Checkpoint, scenes: Dataset) -> None:
    """Logits times 1e4 saturate the softmax: float32 has no gradient left where the prediction is right."""
    last = ("model.heads.main.4.weight", "model.heads.main.4.bias")
    scaled = {key: tensor * 1e4 if key in last else tensor for key, tensor in checkpoint.tensors.items()}
    masked = run_suite(AttackJob(replace(checkpoint, tensors=scaled), scenes, max_images=2), probed=True)
    assert "gradients are zero or not finite" in {alarm.name for alarm in masked.alarms}
    assert attack_markdown(masked).startswith("> **ALARM: ")
    assert "gradients are zero or not finite" not in {alarm.name for alarm in result.alarms}


def test_what_a_suite_does_not_have_is_refused(checkpoint: Checkpoint, scenes: Dataset) -> None:
    with pytest.raises(BenchError, match="--epsilon changes nothing in the quick suite: use --suite sea or full"):
        run_suite(AttackJob(checkpoint, scenes, epsilons=(SIX,)))
    with pytest.raises(BenchError, match="--iterations changes nothing in the paper suite"):
        run_suite(AttackJob(checkpoint, scenes, suite="paper", iterations=5))


@pytest.mark.slow
def test_the_full_suite_has_everything(checkpoint: Checkpoint, other_checkpoint: Checkpoint, scenes: Dataset) -> None:
    full = run_suite(
        AttackJob(checkpoint, scenes, suite="full", iterations=4, epsilons=(SIX,), max_images=2, surrogates=(other_checkpoint,))
    )
    assert {row.name for row in full.rows} == set(get_args(AttackName))
    swept = [row.epsilon for row in full.rows if row.name == "PGD" and not row.eight_bit]
    assert sorted(swept) == pytest.approx([bound / 255 for bound in (0.5, 1, 2, 4, 6, 8, 16)])
    labels = [case.label for case in full.worst_cases if not case.eight_bit]
    assert labels == ["SEA at 6/255", "worst of all at 6/255", "worst of all at 7.65/255"]
    sea_case, every = (next(case for case in full.worst_cases if case.label == label) for label in labels[:2])
    assert every.scores.miou <= min(row.scores.miou for row in full.rows if row.epsilon == SIX and not row.eight_bit)
    assert set(sea_case.members) < set(every.members)
    assert set(plots.plots(full)) == {"attack.png", "epsilon.png"}
