"""L2, universal, patch and minimal norm: within their bounds, beside their controls, judged on other images, resumed."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ddcat.metrics import confusion_counts
from ddcat_bench.attack.job import AttackJob
from ddcat_bench.attack.results import AttackResult
from ddcat_bench.attack.run import run_job
from ddcat_bench.attack.scoring import predict
from ddcat_bench.bootstrap import interval, scheme_of
from ddcat_bench.card.collect import Found, make_card
from ddcat_bench.errors import BenchError
from ddcat_bench.gate.report import gate_brief, gate_html, gate_junit, gate_markdown
from ddcat_bench.inputs import main_branch
from ddcat_bench.perturbation import measure as measuring
from ddcat_bench.perturbation.making import Victims, learn, make
from ddcat_bench.perturbation.measure import PerturbationJob, measure_perturbations, patch_distance
from ddcat_bench.perturbation.plans import Plan, suite_plans
from ddcat_bench.perturbation.report import perturbation_brief, perturbation_markdown, perturbation_plot
from ddcat_bench.perturbation.results import BANDS, Norms, PerturbationRow
from ddcat_bench.result_io import read_result
from ddcat_bench.result_schema import Scores
from ddcat_bench.work_units import Units
from ddcat_train.attacks import place_patch
from ddcat_train.checkpoints import Checkpoint
from ddcat_train.data import Dataset
from ddcat_train.distributed.ranks import Ranks
from ddcat_train.pixels import to_8_bit_in_l2
from tests.bench.gates import DATA, made_gate
from tests.commands import refusal

PLANS = (
    Plan("clean"),
    Plan("L2", "model", 1.0, steps=(("PGD", 4), ("APGD", 6))),
    Plan("L2", None, 1.0),
    Plan("universal", "model", 8 / 255, epochs=2),
    Plan("universal", None, 8 / 255),
    Plan("patch", "model", 0.1, epochs=15, learners=2),
    Plan("patch", None, 0.1),
    Plan("minimal norm", "model", steps=(("DAG", 40),), stride=2),
)


@pytest.fixture(scope="module")
def job(checkpoint: Checkpoint, scenes: Dataset) -> PerturbationJob:
    network = main_branch(checkpoint, torch.device("cpu"))
    judge = lambda images: predict(network, images).numpy()  # noqa: E731
    return PerturbationJob(scenes, PLANS, makers={"model": network}, judges=(judge, judge), batch_size=2)


@pytest.fixture(scope="module")
def rows(job: PerturbationJob, tmp_path_factory: pytest.TempPathFactory) -> tuple[PerturbationRow, ...]:
    told: list[int] = []
    found = measure_perturbations(job, Units(tmp_path_factory.mktemp("work")), advance=told.append)
    assert sum(told) == job.forwards
    return found


def row(rows: tuple[PerturbationRow, ...], threat: str, attack: str) -> PerturbationRow:
    [found] = [one for one in rows if (one.threat, one.attack) == (threat, attack)]
    return found


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**31), st.floats(0.01, 4), st.sampled_from([0.0, 0.4, 3.0]))
def test_rounding_stays_in_the_l2_ball_and_loses_no_whole_level(seed: int, epsilon: float, spread: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randint(0, 256, (2, 3, 9, 7), generator=generator)
    images = clean / 255
    direction = torch.randn(images.shape, generator=generator).sign() * torch.rand(images.shape, generator=generator) ** spread
    delta = direction * epsilon / direction.flatten(1).norm(dim=1)[:, None, None, None]
    adversarial = (images + delta).clamp(0, 1)
    received = to_8_bit_in_l2(adversarial, images, epsilon)
    levels = (received.long() - clean).double()
    assert (levels.flatten(1).norm(dim=1) <= 255 * epsilon).all()
    exact = (adversarial.double() - images.double()) * 255
    assert (levels.abs() >= exact.abs().floor() - 1e-3).all()
    assert ((levels - exact).abs() < 1 + 1e-3).all()


def test_an_l2_perturbation_below_a_level_everywhere_survives_the_rounding() -> None:
    images = torch.full((1, 3, 20, 20), 100 / 255)
    received = to_8_bit_in_l2(images + 0.7 / 255, images, 0.7 / 255 * 1200**0.5)
    assert int((received == 101).sum()) == int(0.49 * 1200)  # each costs 1 of a squared norm of 0.49 * 1200
    assert int((received == 100).sum()) == 1200 - int(0.49 * 1200)


def test_the_distance_from_a_patch_is_that_of_a_loop() -> None:
    placed = place_patch(torch.zeros(1, 3, 17, 23), torch.ones(3, 5, 5), torch.Generator().manual_seed(3), vary=False)
    outside = placed.outside[0].numpy()
    covered = np.argwhere(~outside)
    for (y, x), distance in np.ndenumerate(patch_distance(outside)):
        assert distance == np.abs(covered - (y, x)).max(1).min()


def test_every_attack_beats_its_controls(rows: tuple[PerturbationRow, ...]) -> None:
    clean = row(rows, "clean", "clean").scores
    for attack in ("PGD-4", "APGD-6"):
        assert row(rows, "L2", attack).scores.miou < min(row(rows, "L2", "random signs").scores.miou, clean.miou) - 0.05
    patch = row(rows, "patch", "learnt").scores.pixel_accuracy
    assert patch < min(row(rows, "patch", name).scores.pixel_accuracy for name in ("no patch", "random patch", "grey patch"))
    assert [one.control for one in rows] == [one.made_on is None or one.attack == "random signs" for one in rows]


def test_counts_are_of_each_image_and_an_engine_that_is_the_model_has_the_same(
    job: PerturbationJob, rows: tuple[PerturbationRow, ...]
) -> None:
    clean = row(rows, "clean", "clean")
    for place, index in enumerate(job.indices):
        sample = job.dataset.read(index)
        labels = job.judges[0](torch.from_numpy(sample.image).permute(2, 0, 1)[None])[0]
        assert np.array_equal(clean.scores.array()[place], confusion_counts(sample.labels, labels, len(job.dataset.classes)))
    for one in rows:
        assert one.engine == one.scores
        assert one.places == ((0, 2, 4) if one.threat == "minimal norm" else (0, 1, 2, 3, 4))
        assert len(one.scores.counts) == len(one.places)
    patch = row(rows, "patch", "learnt")
    assert [band.nearest for band in patch.bands] == list(BANDS)
    right = sum(np.array(band.right) for band in patch.bands)
    pixels = sum(np.array(band.pixels) for band in patch.bands)
    assert right.tolist() == patch.scores.array()[..., 0].sum(1).tolist()
    assert pixels.tolist() == patch.scores.array()[..., [0, 2]].sum((1, 2)).tolist()
    side = job.sides[0.1]
    whole = clean.scores.array()[..., [0, 2]].sum((1, 2))
    assert (whole - pixels > 0).all()
    assert (whole - pixels <= side * side).all()


def test_what_is_learnt_on_a_half_is_judged_on_the_other(job: PerturbationJob) -> None:
    for plan in PLANS:
        if plan.epochs:
            first, second = plan.learnt_on(5, 0), plan.learnt_on(5, 1)
            assert set(first) <= {0, 1}
            assert set(second) <= {2, 3, 4}
    assert Plan("patch", "model", 0.05, epochs=1, learners=2).learnt_on(100, 1) == [62, 87]
    seen: dict[int, Tensor] = {}

    class Remembers(Units):
        def get(self, batch: int, plan: int) -> tuple[npt.NDArray[Any], float]:
            return np.full((3, 40, 48), (batch + 1) / 100, np.float32), 0.0

    plan = PLANS[3]

    def judge(images: Tensor) -> npt.NDArray[np.integer]:
        seen[len(seen)] = images
        return np.zeros((len(images), *images.shape[2:]), np.int64)

    watched = dataclasses.replace(job, plans=(plan,), judges=(judge,))
    measuring._count(watched, plan, 0, [1, 2], Remembers(Path()))
    for half, place in ((0, 2), (1, 1)):
        clean = torch.from_numpy(job.dataset.read(job.indices[place]).image).permute(2, 0, 1).long()
        moved = (seen[half][0].long() - clean)[clean < 250].unique()
        assert moved.tolist() == [int(2.55 * (half + 1))]


def brightness(images: Tensor) -> Tensor:
    """Red above one half is class 1: the least change of every value of a flat image is known."""
    return torch.stack([0.5 - images[:, 0], images[:, 0] - 0.5], 1)


def test_a_universal_perturbation_of_other_images_does_what_random_signs_do_not() -> None:
    """133 is 5.5 levels above the threshold, and 8 are allowed."""
    images, labels = torch.full((4, 3, 8, 8), 133 / 255), torch.ones((4, 8, 8), dtype=torch.int64)
    plan = Plan("universal", "model", 8 / 255, epochs=12)
    learnt = learn(plan, brightness, lambda: [(images[:2], labels[:2])], size=(8, 8), side=0, seed=0)
    victims = Victims(images[2:], labels[2:], torch.arange(2))
    [found] = make(plan, brightness, victims, learnt, size=(8, 8), side=0)
    [control] = make(plan._replace(made_on=None, epochs=0), None, victims, None, size=(8, 8), side=0)
    wrong = [float((brightness(one.images.float() / 255).argmax(1) == 0).float().mean()) for one in (found, control)]
    assert wrong[0] == 1
    assert 0.2 < wrong[1] < 0.8
    assert {int((one.images.long() - 133).abs().max()) for one in (found, control)} == {8}


def test_the_norms_are_those_of_the_perturbations_and_what_needs_none_has_none() -> None:
    images = torch.full((3, 3, 8, 8), 0.6)
    labels = torch.ones((3, 8, 8), dtype=torch.int64)
    labels[1] = 0  # wrong already
    images[2] = 1.0  # too far for 60 steps of half a level
    plan = Plan("minimal norm", "model", steps=(("DAG", 60),))
    changed, control = make(plan, brightness, Victims(images, labels, torch.arange(3)), None, size=(8, 8), side=0)
    assert changed.norms is not None
    l2, linf = changed.norms.T.tolist()
    assert linf[0] == pytest.approx(0.1, abs=0.6 / 255)
    assert l2[0] == pytest.approx(linf[0] * 8, rel=1e-4)
    assert (l2[1], linf[1]) == (0, 0)
    assert np.isnan(l2[2])
    assert np.isnan(linf[2])
    moved = (control.images[0].float() - 153).abs()
    assert 25 <= moved.min() <= moved.max() <= 26
    assert (control.images[2] == 255).all()
    norms = Norms(l2=(1.0, None, 3.0), linf=(0.1, None, 0.2))
    assert (norms.found, norms.medians()) == (2, (3.0, 0.2))
    assert Norms(l2=(1.0, None), linf=(0.1, None)).medians() is None


def test_what_was_stopped_continues_and_processes_share(
    job: PerturbationJob, rows: tuple[PerturbationRow, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Alone(Ranks):
        def gather(self, value: Any) -> list[Any]:
            return [value]

    real, calls = measuring._count, []

    def interrupted(*given: Any) -> Any:
        calls.append(given)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return real(*given)

    units = Units(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(measuring, "_count", interrupted)
        with pytest.raises(KeyboardInterrupt):
            measure_perturbations(job, units)
    learnt = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.npz")}
    with pytest.raises(BenchError, match="is missing"):  # the other one has not done its share yet
        measure_perturbations(job, units, ranks=Alone(1, 2))
    assert measure_perturbations(job, units, ranks=Alone(0, 2)) == rows
    assert {file: file.stat().st_mtime_ns for file in learnt} == learnt


def many(rows: tuple[PerturbationRow, ...], times: int) -> tuple[PerturbationRow, ...]:
    """As if there had been more images."""

    def repeated(one: PerturbationRow) -> PerturbationRow:
        scores = Scores.of(np.tile(one.scores.array(), (times, 1, 1)))
        return one.model_copy(update={"scores": scores, "engine": scores, "places": tuple(range(times * len(one.places)))})

    return tuple(map(repeated, rows))


def test_tables_show_each_beside_its_control(rows: tuple[PerturbationRow, ...]) -> None:
    text = perturbation_markdown(rows, DATA)
    assert "| L2 | APGD-6 | L2 1 | PyTorch model | 5 |" in text
    assert "| patch | control: grey patch | 10 % of the image | - | 5 |" in text
    assert "- patch: what printed patches" in text
    assert [cells[0] for cells in perturbation_brief(rows)][-1] == "minimal norm, DAG-40"
    assert perturbation_plot(rows, DATA).startswith(b"\x89PNG")
    alone = tuple(one.model_copy(update={"engine": None}) for one in rows)
    assert "| patch | learnt | 10 % of the image | 5 |" in perturbation_markdown(alone, DATA)
    assert perturbation_markdown((), DATA) == ""


def test_the_gate_reports_them_and_the_card_has_their_interval_and_claim(rows: tuple[PerturbationRow, ...]) -> None:
    plain, gate = made_gate(), made_gate(perturbations=many(rows, 4))
    assert (gate.findings, gate.verdict, gate_junit(gate)) == (plain.findings, plain.verdict, gate_junit(plain))
    assert "## Other perturbations\n\nThese figures are for information." in gate_markdown(gate)
    assert "- for information: patch, learnt, 10 % of the image: PyTorch model" in gate_brief(gate)
    page = gate_html(gate)
    assert "<h2>Other perturbations</h2>" in page
    assert "<b>patch</b> does not show: what printed patches" in page
    assert "Other perturbations" not in gate_markdown(plain) + gate_html(plain)
    card = {one.threat: one for one in make_card(Path("bundle"), [Found(Path("gate.json"), gate)]).rows}
    apgd = min((one for one in gate.perturbations if one.threat == "L2" and not one.control), key=lambda one: one.scores.miou)
    low, high = interval(apgd.scores.array(), scheme_of(DATA.name, DATA.names[:20]))
    shown = card[f"engine, L2: {apgd.attack}, L2 1"]
    assert (shown.figure, shown.interval) == (f"{apgd.scores.miou:.3f}", f"{low:.3f} to {high:.3f}")
    assert shown.images == 20
    patch = card["engine, patch: learnt, 10 % of the image"]
    assert patch.interval
    assert "printed patches" in patch.leaves_open
    assert not any("random" in threat or "grey" in threat for threat in card)


@pytest.mark.usefixtures("no_probe")
def test_a_checkpoint_is_attacked_and_published_with_them(
    checkpoint: Checkpoint, scenes: Dataset, rows: tuple[PerturbationRow, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AttackJob, "plans", PLANS[:3])
    evaluation = AttackJob(checkpoint, scenes, suite="quick", batch_size=2)
    run_job(evaluation, tmp_path / "out")
    result = read_result(tmp_path / "out/attack.json", AttackResult)
    assert result.perturbations == tuple(one.model_copy(update={"engine": None}) for one in rows[:4])
    assert (tmp_path / "out/perturbations.png").is_file()
    assert "## Other perturbations" in (tmp_path / "out/attack.md").read_text()
    assert not (tmp_path / "out.work").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--suite", "full", "--l2", "0"], "--l2 0: expected a norm above 0"),
        (["--suite", "full", "--l2=-1"], "--l2 -1: expected a norm above 0"),
        (["--suite", "full", "--l2", "nan"], "--l2 nan: expected a norm above 0"),
        (["--suite", "full", "--l2", "3/255x"], "--l2 3/255x: expected a norm above 0"),
        (["--suite", "full", "--patch", "1.5"], "--patch 1.5: expected a share of the image above 0 and below 1"),
        (["--suite", "full", "--patch", "0%"], "--patch 0%: expected a share of the image above 0 and below 1"),
        (
            ["--suite", "full", "--patch", "80%"],
            "a patch of 0.8 of an image of 40x48 does not fit into it: use a share above 0",
        ),
        (["--suite", "full", "--max-images", "1"], "tested on the other half, and there is one image: use 2 or more"),
        (["--suite", "sea", "--l2", "1"], "--l2 changes nothing for the suite sea: leave it out"),
        (["--certify", "--patch", "0.02"], "--patch changes nothing for --certify: leave it out"),
        (["--suite", "full", "--protocol", "windows", "--patch", "0.02"], "need whole images: leave out either them or"),
    ],
)
def test_bad_input_is_one_line(run_directory: Path, tmp_path: Path, options: list[str], says: str) -> None:
    assert says in refusal("ddcat", "attack", run_directory, *options, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_suite_full_states_its_bounds() -> None:
    plans = suite_plans()
    assert {plan.bound for plan in plans if plan.threat == "L2"} == {1.0, 3.0}
    assert {plan.bound for plan in plans if plan.threat == "patch"} == {0.01, 0.05}
    chosen = suite_plans(l2=(0.5,), shares=(0.02,))
    assert {plan.bound for plan in chosen if plan.threat in ("L2", "patch")} == {0.5, 0.02}
    for plan in plans:  # every attack has a control of its own bound
        if plan.made_on is not None and plan.threat != "minimal norm":
            assert any((other.threat, other.bound, other.made_on) == (plan.threat, plan.bound, None) for other in plans)
