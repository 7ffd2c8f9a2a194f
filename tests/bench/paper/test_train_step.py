import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from bench.paper.baselines import Baseline, BaselineName, check_comparable
from bench.paper.contenders import CONTENDERS, Ours, Plan, contend, draw_batch
from bench.paper.step_memory import peak_memory
from bench.paper.train_step import main
from bench.paper.train_step_report import train_step_markdown, train_steps_markdown
from bench.paper.train_step_results import TrainStepResult
from ddcat.cli_support import run
from ddcat_bench.errors import BenchError
from ddcat_bench.result_io import read_result, to_json
from ddcat_bench.timing.pytorch_models import torch_settings
from ddcat_train.choices import MethodName
from ddcat_train.config import load_config

BASELINES = get_args(BaselineName)
TINY = (
    "augment.crop=[33, 41]", "train.batch_size=4", "train.precision=fp64", "model.dropout=0", "model.width=4",
    "optim.lr=0.1",
)  # fmt: skip


def plan_of(method: str, *overrides: str) -> Plan:
    return Plan(load_config(f"scenes-{method}", [*TINY, *overrides]), "fp64", "cpu", 1)


METHODS = [(method, ()) for method in get_args(MethodName) if method != "gaussian"]
OTHERS = [
    ("ddcat", ("model.context=aspp",)),
    ("ddcat", ("method.mask_loss_on_ignored=false", "method.deep_weight=0")),
    ("ddcat-m", ("attack.start=random", "method.adversarial_share=0.75")),
    ("ddcat-n", ("attack.alpha=eps/n", "attack.steps=2", "train.batch_size=5")),
    ("sat", ("attack.start=lower", "train.batch_size=3")),
    ("trades", ("method.beta=2", "method.deep_weight=0")),
]
FRUGAL = ("sat", "ddcat", "trades")  # in the quick tests


@pytest.mark.parametrize(
    ("method", "overrides", "name"),
    [
        pytest.param(
            *case, name, marks=[pytest.mark.slow] if case in OTHERS or (name == "frugal" and case[0] not in FRUGAL) else []
        )
        for case in [*METHODS, *OTHERS]
        for name in BASELINES
    ],
)
def test_all_take_the_same_steps(method: str, overrides: tuple[str, ...], name: BaselineName, tmp_path: Path) -> None:
    plan = plan_of(method, *overrides)
    ours = Ours(plan, tmp_path)
    before = ours.weights()
    baseline = contend(plan, name, tmp_path, before)
    assert isinstance(baseline, Baseline)
    for seed in range(2):  # the second one with momentum
        batch = draw_batch(plan, seed=seed)
        assert baseline.step(batch).item() == pytest.approx(ours.step(batch).item(), rel=1e-10)
    after, found = ours.weights(), baseline.network.state_dict()
    assert set(found) == set(after)
    for key, value in after.items():
        torch.testing.assert_close(found[key], value, rtol=1e-10, atol=1e-10, msg=lambda text, key=key: f"{key}: {text}")
    assert not torch.equal(after["heads.main.4.weight"], before["heads.main.4.weight"])


@pytest.mark.parametrize("allowed", [True, False])
def test_a_plan_decides_whether_ours_may_round_to_tf32(allowed: bool, tmp_path: Path) -> None:
    """A run forbids it to its process, and building one is no reason to time another arithmetic than the plan's."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    with torch_settings(1, tf32=allowed):
        contend(plan_of("undefended"), "ours", tmp_path)
        assert (cudnn.allow_tf32, matmul.allow_tf32) == (allowed, allowed)
    assert (cudnn.allow_tf32, matmul.allow_tf32) == before


class Backwards(TorchDispatchMode):
    """What the backwards of some convolutions compute: of each, in their order, the gradients of input and of weight."""

    def __init__(self, convolutions: dict[str, nn.Conv2d]) -> None:
        super().__init__()
        self.names = {convolution.weight.data_ptr(): name for name, convolution in convolutions.items()}
        self.samples = dict.fromkeys(convolutions, 0)
        self.weights = dict.fromkeys(convolutions, 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution_backward.default and (name := self.names.get(args[2].data_ptr())):
            self.samples[name] += len(args[1])
            self.weights[name] += len(args[1]) * args[-1][1]
        return func(*args, **(kwargs or {}))


@contextmanager
def forwards(modules: dict[str, nn.Module]) -> Iterator[dict[str, int]]:
    counts = dict.fromkeys(modules, 0)
    handles = [
        module.register_forward_pre_hook(lambda _, inputs, name=name: counts.update({name: counts[name] + len(inputs[0])}))
        for name, module in modules.items()
    ]
    yield counts
    for handle in handles:
        handle.remove()


# In batches: forwards and backwards of the backbone, backwards that compute gradients of parameters, forwards and backwards of
# the auxiliary and mask heads, and of deep supervision.
@pytest.mark.parametrize(
    ("name", "method", "overrides", "forward", "backward", "full", "spare", "deep"),
    [
        ("released", "undefended", (), 1, 1, 1, (0, 0), (1, 1)),
        ("released", "sat", (), 4, 4, 4, (0, 0), (4, 4)),
        ("released", "ddcat", (), 8, 4, 4, (8, 4), (8, 4)),
        ("released", "ddcat-m", (), 8, 4, 4, (8, 4), (8, 4)),
        ("released", "ddcat-n", (), 8, 4, 4, (8, 4), (8, 4)),
        ("released", "ddcat", ("attack.steps=7",), 16, 8, 8, (16, 8), (16, 8)),
        ("released", "pgd-at", (), 4, 4, 4, (0, 0), (4, 4)),
        ("released", "segpgd-at", (), 4, 4, 4, (0, 0), (4, 4)),
        ("released", "trades", (), 6, 5, 5, (0, 0), (6, 5)),
        ("frugal", "undefended", (), 1, 1, 1, (0, 0), (1, 1)),
        ("frugal", "sat", (), 4, 4, 1, (0, 0), (1, 1)),
        ("frugal", "ddcat", (), 6, 4, 1, (3, 1), (1, 1)),
        ("frugal", "ddcat-n", (), 6, 4, 1, (3, 1), (1, 1)),
        ("frugal", "pgd-at", (), 4, 4, 1, (0, 0), (1, 1)),
        ("frugal", "trades", (), 6, 5, 2, (0, 0), (2, 2)),
    ],
)
def test_forwards_and_backwards(
    name: BaselineName,
    method: str,
    overrides: tuple[str, ...],
    forward: int,
    backward: int,
    full: int,
    spare: tuple[int, int],
    deep: tuple[int, int],
    tmp_path: Path,
) -> None:
    plan = plan_of(method, *overrides)
    baseline = contend(plan, name, tmp_path)
    assert isinstance(baseline, Baseline)
    network = baseline.network
    heads = dict(network.heads.items())
    firsts = {"backbone": network.backbone.layer0[3], **{head: module[0] for head, module in heads.items()}}
    with forwards({"backbone": network.backbone, **heads}) as through, Backwards(firsts) as back:
        baseline.step(draw_batch(plan))
    expected = {"main": (forward, backward), "auxiliary": spare, "mask": spare, "deep": deep}
    assert through == {"backbone": 4 * forward, **{head: 4 * expected[head][0] for head in heads}}
    assert back.samples == {"backbone": 4 * backward, **{head: 4 * expected[head][1] for head in heads}}
    assert back.weights["backbone"] == back.weights["main"] == 4 * full


def test_bf16_is_close_and_computes_in_bf16(tmp_path: Path) -> None:
    exact, rounded = plan_of("undefended"), Plan(plan_of("undefended").config, "bf16", "cpu", 1)
    weights = Ours(exact, tmp_path).weights()
    losses = [contend(plan, "released", tmp_path, weights).step(draw_batch(plan)).item() for plan in (exact, rounded)]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method.update=two-step", "method.update two-step: .*use joint"),
        ("method.predicted_mask=algorithm-2", "method.predicted_mask algorithm-2: .* forward"),
        ("train.accumulate=2", "train.accumulate 2"),
        ("train.ema=0.9", "train.ema 0.9"),
        ("method.name=gaussian", "method.name gaussian: .* use another method"),
    ],
)
def test_steps_that_the_baselines_do_not_take(override: str, message: str) -> None:
    with pytest.raises(BenchError, match=message):
        check_comparable(plan_of("ddcat", override).config)


@pytest.mark.slow
def test_memory_is_that_of_a_process_of_its_own() -> None:
    small, large = (peak_memory(plan_of("sat", f"augment.crop={crop}"), "ours") for crop in (33, 129))
    assert small is not None
    assert large is not None
    assert 0 < small < large


@pytest.fixture(autouse=True)
def quick_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ddcat_bench.timing.throughput._PRODUCTS_WITHIN", 0.1)
    monkeypatch.setattr("ddcat_bench.timing.throughput._SIDE", {"cpu": 256})


@pytest.fixture
def status(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int | str | None]:
    """Call the script, and return its exit status."""
    monkeypatch.setattr("bench.paper.train_step.peak_memory", lambda plan, name: 2**20)  # in a process of its own

    def call(*arguments: object) -> int | str | None:
        monkeypatch.setattr(sys, "argv", ["train_step.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            run(main)
        return left.value.code

    return call


def test_the_command(status: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    tiny = ["scenes-ddcat", "--crop", "33", "41", "--batch", "4", "--set", "model.width=4", "--device", "cpu", "--threads", "1"]
    assert status(*tiny, "--repeats", "2", "--out", str(out), "--precision", "fp64", "--baseline-precision", "fp32") == 0
    result = read_result(out / "train-step.json", TrainStepResult)
    assert "(a) released" in capsys.readouterr().out
    assert (result.preset, result.method, result.batch, result.height, result.width) == ("scenes-ddcat", "ddcat", 4, 33, 41)
    assert [entry.name for entry in result.contenders] == list(CONTENDERS)
    assert [entry.precision for entry in result.contenders] == ["fp64", "fp32", "fp32"]
    assert all(len(entry.times.seconds) == 2 for entry in result.contenders)
    assert all(entry.peak_memory == 2**20 for entry in result.contenders)
    ours, released, frugal = (entry.operations for entry in result.contenders)
    assert ours < frugal < released
    assert [ratio.baseline for ratio in result.ratios] == list(BASELINES)
    assert set(result.matrix_product_peak) == {"fp64", "fp32"}
    assert result.environment.threads == 1
    assert (out / "train-step.md").read_text() == train_step_markdown(result)
    assert to_json(result) == (out / "train-step.json").read_text()
    busy = result.model_copy(update={"others": 0.5})
    assert "Not a quiet machine" in train_step_markdown(busy)
    lines = [line for line in train_steps_markdown([result, busy]).splitlines() if line.startswith("| scenes-ddcat ")]
    assert [("**no**" in line, "4 x 33 x 41" in line, "fp64 / fp32" in line) for line in lines[1:]] == [(True, True, True)]
    idle = result.model_copy(update={"others": 0.0})
    assert "Not a quiet machine" not in train_step_markdown(idle)
    older = result.model_copy(update={"others": None, "load_before": 3.0})  # of before the cores of others were counted
    assert older.disturbed
    assert not older.model_copy(update={"load_before": 0.0, "load_after": 1.0}).disturbed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["scenes-ddcatt"], "did you mean scenes-ddcat"),
        (["scenes-ddcat", "--crop", "20", "33"], "33 x 33"),
        (["scenes-ddcat", "--set", "method.update=two-step"], "method.update"),
        (["scenes-ddcat", "--set", "optim.lrr=1"], "optim.lr"),
        (["scenes-ddcat", "--batch", "1"], "batch_size"),
        (["scenes-ddcat", "--precision", "fp16"], "precision"),
        (["scenes-ddcat", "--baseline-precision", "fp16"], "--baseline-precision: invalid choice: 'fp16'"),
        (["scenes-ddcat", "--device", "tpu"], "--device: invalid choice: 'tpu'"),
        (["scenes-ddcat", "--repeats", "0"], "--repeats"),
        (["scenes-ddcat", "--set", "data.name=folder", "--device", "cpu"], "classes.yaml"),
    ],
)
def test_wrong_arguments(
    arguments: list[str], message: str, tmp_path: Path, status: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status(*arguments, "--out", tmp_path / "out") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_is_refused_before_anything_is_measured(
    tmp_path: Path, status: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").write_text("")
    assert status("scenes-sat", "--out", tmp_path) == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_a_refused_one_leaves_no_folder(tmp_path: Path, status: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert status("scenes-ddcat", "--set", "method.update=two-step") == 2
    assert list(tmp_path.iterdir()) == []
