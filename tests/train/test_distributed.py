"""Two ranks over gloo on the CPU: equal to one process, and what happens when one of them ends."""

import dataclasses
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
from typer.testing import CliRunner

from ddcat.command import run
from ddcat_train import cli
from ddcat_train import launch as launching
from ddcat_train.checkpoints import LAST, load_checkpoint
from ddcat_train.config import Config, load_config
from ddcat_train.errors import ConfigError, TrainError
from ddcat_train.evaluation import evaluate
from ddcat_train.launch import launch
from ddcat_train.loop import train
from ddcat_train.networks.batch_norm import synchronise_batch_norm
from ddcat_train.ranks import ALONE, Ranks, join
from ddcat_train.shares import check_shares, clean_images, share_of
from ddcat_train.trainer import Trainer

FORK = multiprocessing.get_context("fork")  # torch is there already: to import it takes longer than most of these tests
Together = Callable[..., list[Any]]


def be_rank(rank: int, size: int, port: int, work: Callable[[], Any], result: Path) -> None:
    os.environ |= {
        "TORCHELASTIC_RUN_ID": "test", "TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
    }  # fmt: skip
    torch.set_num_threads(1)
    try:
        torch.save(work(), result)
    except BaseException:
        result.with_suffix(".error").write_text(traceback.format_exc())


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Together:
    """Call a function in processes, two of them, that can talk to each other, and give what each of them returned."""

    def call(work: Callable[[], Any], size: int = 2) -> list[Any]:
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        folder = tmp_path_factory.mktemp("together")
        results = [folder / f"rank{rank}.pt" for rank in range(size)]
        ranks = [FORK.Process(target=be_rank, args=(r, size, store.port, work, result)) for r, result in enumerate(results)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(300)
            process.kill()
        errors = [result.with_suffix(".error") for result in results]
        assert [error.read_text() for error in errors if error.exists()] == []
        return [torch.load(result, weights_only=False) for result in results]

    return call


@pytest.fixture
def tiny(tiny_scenes: Path) -> Callable[..., Config]:
    """Configurations whose steps are equal on any number of ranks: 3 epochs of 2 steps."""

    def config(method: str, *overrides: str) -> Config:
        fixed = [
            f"data.root={tiny_scenes}", "augment.crop=33", "model.width=4", "model.dropout=0", "train.epochs=3",
            "train.batch_size=6", "train.precision=fp64",
        ]  # fmt: skip
        return load_config(f"scenes-{method}", [*fixed, *overrides])

    return config


# --- equal to one process


def steps(config: Config, ignored: dict[int, float]) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    """Three steps; `ignored` is the share of rows that are ignored, by the place in the whole batch."""
    trainer = Trainer(config, device="cpu")
    for module in trainer._network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.9  # so that the network in eval() soon answers what an attack can change
    places = share_of(trainer.ranks.rank, trainer.ranks.size, config)
    logs = []
    for batch, _ in zip(trainer.batches(), range(3), strict=False):
        for labels, place in zip(batch.labels, places, strict=True):
            labels[: round(33 * ignored.get(place, 0))] = 255
        logs.append({name: float(value) for name, value in trainer.apply(batch).items()})
    return logs, trainer._network.state_dict()


UNEVEN = {0: 0.3, 1: 1.0, 3: 0.9, 4: 0.6}
ONE_RANK = {1: 1.0, 3: 1.0, 5: 1.0}  # the whole share of rank 1


@pytest.mark.parametrize(
    ("method", "overrides", "ignored"),
    [
        ("clean", [], UNEVEN),
        ("sat", ["method.split=global"], ONE_RANK),
        ("sat", ["method.split=global", "method.adversarial_share=0.3", "model.context=aspp"], {}),
        ("sat", ["method.split=global", "train.batch_size=8", "train.accumulate=2"], UNEVEN),
        ("ddcat", ["method.split=global"], UNEVEN),
        ("ddcat", ["method.split=global", "method.update=two-step", "method.predicted_mask=algorithm-2"], ONE_RANK),
        ("ddcat", ["method.split=global", "method.mask_loss_on_ignored=false", "train.batch_size=2"], {0: 0.5}),
        ("ddcat", ["method.split=global", "method.update=two-step", "train.batch_size=12", "train.accumulate=3"], UNEVEN),
        ("pgd-at", [], UNEVEN),
        ("pgd-at", ["method.name=trades"], ONE_RANK),
        ("ddcat-m", ["method.split=global"], UNEVEN),
        ("ddcat-n", ["method.split=global"], UNEVEN),
        ("segpgd-at", [], UNEVEN),
    ],
    ids=str,
)
def test_two_ranks_are_one_process_with_the_same_batch(
    method: str, overrides: list[str], ignored: dict[int, float], tiny: Callable[..., Config], together: Together
) -> None:
    config = tiny(method, *overrides)
    logs, weights = steps(config, ignored)
    (first_logs, first), (second_logs, second) = together(lambda: steps(config, ignored))
    assert len(logs) == 3
    assert first_logs == second_logs
    for expected, found in zip(logs, first_logs, strict=True):
        assert found == pytest.approx(expected, rel=1e-10, abs=1e-12)
        assert found["loss"] > 0.1
    assert method != "ddcat" or all(0.001 < logs[2][name] < 0.999 for name in ("mask_share", "chosen_share"))
    assert first.keys() == second.keys() == weights.keys()
    assert all(torch.equal(first[name], second[name]) for name in weights)
    for name, value in weights.items():
        torch.testing.assert_close(first[name], value, rtol=1e-9, atol=1e-11, msg=name)


@pytest.mark.parametrize(
    ("method", "overrides"),
    [("sat", ["method.split=global"]), ("ddcat", ["method.split=global"]), ("pgd-at", [])],
    ids=str,
)
def test_portions_are_the_whole_batch_but_for_batch_norm(
    method: str, overrides: list[str], tiny: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nn.BatchNorm2d, "train", lambda module, mode=True: nn.Module.train(module, False))
    (logs, weights), (found_logs, found) = (
        steps(tiny(method, *overrides, f"train.accumulate={portions}"), UNEVEN) for portions in (1, 3)
    )
    for expected, values in zip(logs, found_logs, strict=True):
        assert values == pytest.approx(expected, rel=1e-10, abs=1e-12)
        assert values["gradient_norm"] > 0
    for name, value in weights.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-11, msg=name)


def test_three_ranks_of_which_one_alone_has_a_clean_image(tiny: Callable[..., Config], together: Together) -> None:
    config = tiny("ddcat", "method.split=global", "method.adversarial_share=0.7", "train.batch_size=6")
    assert [clean_images(share_of(rank, 3, config), config) for rank in range(3)] == [1, 0, 0]
    logs, weights = steps(config, UNEVEN)
    for found_logs, found in together(lambda: steps(config, UNEVEN), 3):
        for expected, values in zip(logs, found_logs, strict=True):
            assert values == pytest.approx(expected, rel=1e-10, abs=1e-12)
        for name, value in weights.items():
            torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-11, msg=name)


def test_images_are_judged_once_though_three_ranks_do_not_divide_them(tiny: Callable[..., Config], together: Together) -> None:
    def scored() -> tuple[dict[str, float], int]:
        trainer = Trainer(tiny("clean", "train.batch_size=6"), device="cpu")
        read: list[int] = []
        trainer._network.normalise.register_forward_pre_hook(lambda module, inputs: read.append(len(inputs[0])))
        return trainer.evaluate(), sum(read) // 4  # a forward for n = 0, 1, 2, 3

    scores, images = scored()
    found = together(scored, 3)
    assert [each[0] for each in found] == [scores] * 3
    assert (images, [each[1] for each in found]) == (4, [2, 1, 1])


@pytest.mark.parametrize("method", ["ddcat", "pgd-at"])
def test_bf16_on_two_ranks(method: str, tiny: Callable[..., Config], together: Together) -> None:
    config = tiny(method, "method.split=global" if method == "ddcat" else "attack.steps=2", "train.precision=bf16")
    logs, _ = steps(config, {})
    (first_logs, first), (second_logs, second) = together(lambda: steps(config, {}))
    assert first_logs == second_logs
    assert all(torch.equal(value, second[name]) and value.isfinite().all() for name, value in first.items())
    assert {value.dtype for value in first.values()} == {torch.float32, torch.int64}
    for expected, found in zip(logs, first_logs, strict=True):  # sums of bf16 activations are rounded otherwise
        assert found["loss"] == pytest.approx(expected["loss"], rel=0.1)


def test_batch_norm_over_ranks_is_batch_norm_of_all(together: Together) -> None:
    torch.manual_seed(0)
    maps, upstream = torch.rand(5, 3, 4, 6, dtype=torch.float64) * 3 - 1, torch.rand(5, 3, 4, 6, dtype=torch.float64)
    layer = nn.BatchNorm2d(3, momentum=0.3).double()
    nn.init.uniform_(layer.weight)
    nn.init.uniform_(layer.bias)
    own = [slice(0, 2), slice(2, 5)]  # of different number

    def run(layer: nn.Module, part: slice) -> dict[str, Tensor]:
        leaf = maps[part].clone(memory_format=torch.channels_last).requires_grad_()
        outputs = layer(leaf)
        outputs.backward(upstream[part])
        values = {name: parameter.grad for name, parameter in layer.named_parameters()} | layer.state_dict(prefix="state.")
        return values | {"outputs": outputs.detach(), "inputs": leaf.grad, "in eval": layer.eval()(maps).detach()}

    def rank() -> dict[str, Tensor]:
        _, ranks = join("cpu", "32-true")
        return run(synchronise_batch_norm(layer.train()), own[ranks.rank])

    found = together(rank)
    expected = run(layer.train(), slice(0, 5))
    for name in ("outputs", "inputs"):
        torch.testing.assert_close(torch.cat([values[name] for values in found]), expected.pop(name), rtol=0, atol=1e-12)
    for name in ("weight", "bias"):
        torch.testing.assert_close(found[0][name] + found[1][name], expected.pop(name), rtol=0, atol=1e-12)
    assert expected.keys() == {"in eval", *(f"state.{name}" for name in layer.state_dict())}
    for name, value in expected.items():
        for values in found:
            torch.testing.assert_close(values[name], value, rtol=0, atol=1e-12, msg=name)


def test_an_attack_does_not_communicate(tiny: Callable[..., Config], together: Together) -> None:
    config = tiny("clean")

    def alone_in_eval() -> list[int]:
        trainer = Trainer(config, device="cpu")
        trainer._network.eval()
        if trainer.ranks.rank:
            return []  # rank 0 would wait for it in vain
        return list(trainer._network(torch.rand(1, 3, 33, 33, dtype=torch.float64)).shape)

    assert together(alone_in_eval)[0] == [1, 6, 33, 33]


def test_ranks_that_begin_differently_are_refused(tiny: Callable[..., Config], together: Together) -> None:
    def refused() -> str:
        trainer = Trainer(tiny("clean", f"seed={os.environ['RANK']}"), device="cpu")
        with pytest.raises(ConfigError) as caught:
            trainer.check_equal()
        return str(caught.value)

    assert all("ranks 0 and 1 begin with different weights" in message for message in together(refused))


def test_what_ranks_tell_each_other(together: Together) -> None:
    def talk() -> list[Any]:
        _, ranks = join("cpu", "32-true")
        large = [torch.full((2**22, 3), float(ranks.rank + 1)).T, torch.tensor(ranks.rank), torch.ones(2**23)]  # 3 messages
        ranks.add(large)
        sums = [float(tensor.max()) for tensor in large]
        return [sums, large[0].is_contiguous(), ranks.highest([ranks.rank, -ranks.rank]), ranks.gather("ab"[ranks.rank])]

    assert together(talk) == [[[3.0, 1.0, 2.0], False, [1, 0], ["a", "b"]]] * 2
    assert (ALONE.highest([3]), ALONE.gather("a"), Ranks().size) == ([3], ["a"], 1)


# --- shares


def test_shares_are_dealt_out_like_cards(tiny: Callable[..., Config]) -> None:
    config = tiny("sat", "train.batch_size=8")
    assert [share_of(rank, 2, config) for rank in range(2)] == [[0, 2, 4, 6], [1, 3, 5, 7]]
    twice = tiny("sat", "train.batch_size=8", "train.accumulate=2")
    shares = [share_of(rank, 2, twice) for rank in range(2)]
    assert shares == [[0, 1, 4, 5], [2, 3, 6, 7]]
    assert [sorted(shares[0][j::2] + shares[1][j::2]) for j in range(2)] == [share_of(0, 1, twice)[j::2] for j in range(2)]


@pytest.mark.parametrize(
    ("overrides", "ranks", "expected"),
    [
        (["train.batch_size=6"], 2, {"rank": [1, 1], "global": [2, 1]}),
        (["train.batch_size=6", "method.adversarial_share=0.3"], 2, {"rank": [2, 2], "global": [2, 2]}),
        (["train.batch_size=10", "method.adversarial_share=1"], 5, {"rank": [0] * 5, "global": [0] * 5}),
        (["train.batch_size=4"], 4, {"rank": [0] * 4, "global": [1, 1, 0, 0]}),
        (["train.batch_size=7"], 1, {"rank": [3], "global": [3]}),
    ],
    ids=str,
)
def test_the_first_images_stay_clean(
    overrides: list[str], ranks: int, expected: dict[str, list[int]], tiny: Callable[..., Config]
) -> None:
    for split, counts in expected.items():
        config = tiny("sat", *overrides, f"method.split={split}")
        assert [clean_images(share_of(rank, ranks, config), config) for rank in range(ranks)] == counts


def test_split_rank_attacks_a_part_of_every_rank(tiny: Callable[..., Config], together: Together) -> None:
    def attacked() -> list[int]:
        trainer = Trainer(tiny("sat", "method.split=rank"), device="cpu")
        batch = next(trainer.batches())
        seen: list[Tensor] = []
        with trainer._network.normalise.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach())):
            trainer.apply(batch)
        return [index for index, image in enumerate(batch.images.double()) if not torch.equal(image, seen[-1][index])]

    assert together(attacked) == [[1, 2], [1, 2]]


def test_a_batch_that_does_not_divide_is_refused(tiny: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError, match="batch_size 6 does not divide into 2 devices x 2 portions: 4 or 8 would be right"):
        check_shares(tiny("clean", "train.accumulate=2"), 2)
    with pytest.raises(ConfigError, match="8 devices x 1 portions: 8 would be right"):
        check_shares(tiny("clean"), 8)
    with pytest.raises(ConfigError, match="accumulate 3 would be possible"):
        tiny("clean", "train.accumulate=6")


def test_portions_in_which_ddcat_could_mark_nothing_are_refused(tiny: Callable[..., Config]) -> None:
    config = tiny("ddcat", "train.batch_size=4", "method.adversarial_share=0.75")
    check_shares(config, 1)
    with pytest.raises(ConfigError, match=r"leaves none of a portion's 2 images clean.* method.split global"):
        check_shares(config, 2)
    check_shares(tiny("ddcat-m", "train.batch_size=4", "method.adversarial_share=0.75"), 2)
    check_shares(tiny("ddcat", "train.batch_size=4", "method.adversarial_share=0.75", "method.split=global"), 2)


# --- evaluation


def test_evaluation_is_shared_out_and_counts_the_same(tiny: Callable[..., Config], together: Together) -> None:
    def scored() -> tuple[dict[str, float], list[tuple[list[str], list[Any], int]]]:
        trainer = Trainer(tiny("clean"), device="cpu")
        read: list[int] = []
        trainer._network.normalise.register_forward_pre_hook(lambda module, inputs: read.append(len(inputs[0])))
        results = []
        for limit in (None, 3, 1):
            read.clear()
            names, counts = dataclasses.astuple(
                evaluate(
                    trainer._network, trainer._val, epsilon=0.03, alpha=0.01, steps=(0, 2), batch_size=2, limit=limit,
                    device=torch.device("cpu"), dtype=torch.float64, ranks=trainer.ranks,
                )
            )  # fmt: skip
            results.append((names, [counts[n].tolist() for n in (0, 2)], sum(read) // 3))  # a forward for n = 0, 1, 2
        return trainer.evaluate(), results

    scores, expected = scored()
    (first_scores, first), (second_scores, second) = together(scored)
    assert first_scores == second_scores == scores
    assert expected[0][0] == [f"val_{index:05d}" for index in range(4)]
    for one, other, alone in zip(first, second, expected, strict=True):
        assert one[:2] == other[:2] == alone[:2]
        assert (one[2], other[2]) == (-(-alone[2] // 2), alone[2] // 2)


# --- stopping and going on


@pytest.fixture(scope="module")
def overrides(tiny_scenes: Path) -> list[str]:
    return [
        f"data.root={tiny_scenes}", "augment.crop=33", "model.width=4", "train.epochs=6", "train.batch_size=4",
        "train.evaluate_every=4",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, overrides: list[str], together: Together) -> Path:
    """What two ranks come to in one go."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert together(lambda: train(load_config("scenes-ddcat", overrides), run, device="cpu").step) == [18, 18]
    return run


def assert_same(run: Path, whole: Path) -> None:
    expected, found = (load_checkpoint(folder / LAST).tensors for folder in (whole, run))
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert expected["random.cpu"].shape[0] == 2
    assert not torch.equal(*expected["random.cpu"])
    assert (run / "log.jsonl").read_text() == (whole / "log.jsonl").read_text()


def assert_resumes(run: Path, whole: Path, together: Together) -> None:
    config = load_config(str(run / "config.yaml"))
    assert together(lambda: train(config, run, resume=True, device="cpu").step) == [18, 18]
    assert_same(run, whole)


def arguments(overrides: list[str], run: Path, *others: object) -> list[str]:
    sets = [part for override in overrides for part in ("--set", override)]
    return ["scenes-ddcat", *sets, "--device", "cpu", "--out", str(run), *map(str, others)]


class Command:
    """A command line in a process group of its own; forked, so that it need not import torch again."""

    def __init__(self, main: Callable[[], object], arguments: list[str], printed: Path) -> None:
        self._printed = printed
        self.process = FORK.Process(target=self._run, args=(main, arguments))
        self.process.start()

    def _run(self, main: Callable[[], object], arguments: list[str]) -> None:
        os.setsid()
        with self._printed.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
        sys.argv = ["command", *arguments]
        main()

    def end(self) -> tuple[int | None, list[str]]:
        """Wait for it; its exit status, and what it printed beside the usual lines of a run."""
        self.process.join(300)
        lines = self._printed.read_text().splitlines()
        return self.process.exitcode, [line for line in lines if not line.startswith(("ddcat: ", "step ", "the loader "))]


@pytest.fixture
def started(overrides: list[str], tmp_path: Path) -> Iterator[Command]:
    """Two ranks that save after every step and have done some."""
    more = arguments([*overrides, "train.workers=1"], tmp_path / "run", "--devices", 2, "--save-every", 0)
    command = Command(cli.main, more, tmp_path / "printed")
    saved = tmp_path / "run/last.json"
    while not (saved.is_file() and json.loads(saved.read_text())["step"] >= 4):
        time.sleep(0.01)
        assert command.process.is_alive()
    yield command
    command.process.kill()


def processes_of(run: Path) -> dict[int, str]:
    """Every process whose command line names a run, and its rank."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if str(run).encode() in (folder / "cmdline").read_bytes():
                environment = (folder / "environ").read_bytes().split(b"\0")
                found[int(folder.name)] = next((e[5:].decode() for e in environment if e.startswith(b"RANK=")), "")
        except OSError:
            continue
    return found


def assert_none_left(run: Path) -> None:
    for _ in range(100):  # a reader of images looks every 5 seconds whether its rank is alive
        if not processes_of(run):
            return
        time.sleep(0.1)
    raise AssertionError(processes_of(run))


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the ranks in /proc")
@pytest.mark.parametrize("rank", ["0", pytest.param("1", marks=pytest.mark.slow)])
def test_a_killed_rank_ends_the_run_which_resumes_to_the_same_bits(
    rank: str, started: Command, tmp_path: Path, whole: Path, together: Together
) -> None:
    run = tmp_path / "run"
    victim = min(pid for pid, found in processes_of(run).items() if found == rank)
    os.kill(victim, signal.SIGKILL)
    status, printed = started.end()
    assert status == 2
    step = load_checkpoint(run / LAST).description.step
    assert step < 18
    assert printed == [
        f"error: rank {rank} was killed by SIGKILL (by hand, or for want of memory); the others were stopped. Continue from "
        f"step {step} with: ddcat-train {run}/config.yaml --resume --device cpu --devices 2"
    ]
    assert_none_left(run)
    assert_resumes(run, whole, together)


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_stops_all_ranks_after_the_same_step(
    number: signal.Signals, started: Command, tmp_path: Path, whole: Path, together: Together
) -> None:
    run, pid = tmp_path / "run", started.process.pid
    assert pid is not None
    if number == signal.SIGINT:
        os.killpg(pid, number)  # as Ctrl-C does
    else:
        os.kill(pid, number)
    status, printed = started.end()
    assert status == 128 + number
    step = load_checkpoint(run / LAST).description.step
    assert step < 18
    assert printed == [
        f"stopped by {number.name} at step {step} of 18; continue with: "
        f"ddcat-train {run}/config.yaml --resume --device cpu --devices 2"
    ]
    assert_none_left(run)
    assert_resumes(run, whole, together)


@pytest.mark.slow
def test_the_end_of_the_agent_is_a_signal_to_stop(started: Command, tmp_path: Path, whole: Path, together: Together) -> None:
    started.process.kill()
    started.process.join()
    assert_none_left(tmp_path / "run")
    assert_resumes(tmp_path / "run", whole, together)


def test_torchrun_is_the_same(overrides: list[str], tmp_path: Path, whole: Path) -> None:
    run = tmp_path / "run"
    options = ["--standalone", "--nproc-per-node", "2", "-m", "ddcat_train.cli"]
    status, printed = Command(torchrun.main, [*options, *arguments(overrides, run)], tmp_path / "printed").end()
    assert status == 0
    assert sum(line.startswith(f"{run}: 18 steps") for line in printed) == 1
    assert (tmp_path / "printed").read_text().count("on 2 x cpu") == 1
    assert len(list((run / "tensorboard").iterdir())) == 1
    assert_same(run, whole)


def test_another_number_of_ranks_goes_on_and_says_so(
    tiny: Callable[..., Config], tmp_path: Path, together: Together, capfd: pytest.CaptureFixture[str]
) -> None:
    config = tiny("sat", "method.split=global", "model.dropout=0.5", "train.epochs=2")

    def stopped() -> int:
        apply = Trainer.apply

        def interrupted(self: Trainer, batch: Any) -> Any:
            if self.step == 1 and self.ranks.rank == 1:
                signal.raise_signal(signal.SIGTERM)  # one rank alone: all stop
            return apply(self, batch)

        Trainer.apply = interrupted  # type: ignore[method-assign]  # of this process, which ends soon
        return train(config, tmp_path / "run", device="cpu").step

    assert together(stopped) == [2, 2]
    assert train(config, tmp_path / "run", resume=True, device="cpu").step == 4
    assert "from step 2, begun on 2: not what those would have ended with" in capfd.readouterr().err
    assert load_checkpoint(tmp_path / "run" / LAST).tensors["random.cpu"].shape[0] == 1


# --- errors


@pytest.mark.slow
def test_an_error_of_one_rank_is_one_line(tiny_scenes: Path, overrides: list[str], tmp_path: Path) -> None:
    shutil.copytree(tiny_scenes, tmp_path / "scenes")
    image = min((tmp_path / "scenes/JPEGImages").glob("*.jpg"))
    image.write_bytes(image.read_bytes()[:200])
    more = arguments(overrides, tmp_path / "run", "--data-root", tmp_path / "scenes", "--devices", 2)
    status, printed = Command(cli.main, more, tmp_path / "printed").end()
    assert status == 2
    assert len(printed) == 1
    assert printed[0].startswith("error: ")
    assert image.name in printed[0]
    assert_none_left(tmp_path / "run")


def test_what_is_not_finite_on_one_rank_stops_all_and_names_the_images_of_all(
    tiny: Callable[..., Config], tmp_path: Path, together: Together
) -> None:
    config, run = tiny("sat"), tmp_path / "run"

    def spoilt() -> tuple[str, list[tuple[str, ...]]]:
        apply, seen = Trainer.apply, []

        def spoil(self: Trainer, batch: Any) -> Any:
            seen.append(batch.names)
            if self.step == 3 and self.ranks.rank == 1:
                batch.images[0, 0, 0, 0] = torch.inf
            return apply(self, batch)

        Trainer.apply = spoil  # type: ignore[method-assign]  # of this process, which ends soon
        with pytest.raises(TrainError, match="not finite at step 4") as caught:
            train(config, run, device="cpu", save_every=0)
        return str(caught.value), seen

    (told, first), (other, second) = together(spoilt)
    assert told == other
    named = json.loads((run / "nonfinite.json").read_text())
    assert [Path(image).stem for image in named["images"]] == [*first[3], *second[3]]
    assert load_checkpoint(run / LAST).description.step == 3
    assert together(lambda: train(config, run, resume=True, device="cpu").step) == [6, 6]


def test_nothing_is_lost_to_a_corrupt_image_of_one_rank(
    tiny: Callable[..., Config], tiny_scenes: Path, tmp_path: Path, together: Together
) -> None:
    shutil.copytree(tiny_scenes, tmp_path / "scenes")
    config, run = tiny("sat", f"data.root={tmp_path / 'scenes'}"), tmp_path / "run"
    trainer = Trainer(config, device="cpu")
    before, step = (batch.names for batch, _ in zip(trainer.batches(), range(2), strict=False))
    (name, *_) = set(step[1::2]) - set(before)  # the share of rank 1
    image = next(pair.image for pair in trainer.data.pairs if pair.name == name)
    image.write_bytes(b"no image")

    def refused() -> str:
        with pytest.raises(TrainError) as caught:
            train(config, run, device="cpu")
        return f"{type(caught.value).__name__} {caught.value}"

    lost, refusal = together(refused)
    assert lost == "LostRankError rank 0 stopped, for another could not read its images"
    assert refusal.startswith(f"DataError {image} is no image")
    assert load_checkpoint(run / LAST).description.step == 1
    skipping = tiny("sat", f"data.root={tmp_path / 'scenes'}", "data.skip_corrupt=true")
    expected = [len(batch.skipped) for batch in Trainer(skipping, device="cpu").batches()]
    assert together(lambda: train(skipping, tmp_path / "other", device="cpu").step) == [6, 6]
    lines = [json.loads(line) for line in (tmp_path / "other/log.jsonl").read_text().splitlines()]
    assert [line["skipped"] for line in lines if "loss" in line] == expected
    assert json.loads((tmp_path / "other/summary.json").read_text())["skipped"] == sum(expected) > 2


@pytest.mark.slow
def test_a_loss_that_is_not_finite_on_all_ranks_is_one_line(overrides: list[str], tmp_path: Path) -> None:
    more = arguments([*overrides, "optim.lr=1e30"], tmp_path / "run", "--devices", 2)
    status, printed = Command(cli.main, more, tmp_path / "printed").end()
    assert status == 2
    assert len(printed) == 1
    assert "not finite at step" in printed[0]
    assert (tmp_path / "run/nonfinite.json").is_file()
    assert_none_left(tmp_path / "run")


def test_what_ranks_refuse_is_told_once(tmp_path: Path) -> None:
    def start() -> None:
        run(lambda: launch(2, module="ddcat_train.cli", reached=lambda: "its start", again="again"))

    status, printed = Command(start, ["scenes-dcat"], tmp_path / "printed").end()  # refused by each before it needs torch
    assert status == 2
    assert len(printed) == 1
    assert printed[0].startswith("error: scenes-dcat is neither a file nor a preset: did you mean")


def failure(exit_status: int, when: int, tmp_path: Path, message: str | None = None) -> ProcessFailure:
    file = tmp_path / f"{exit_status}.json"
    if message is not None:
        file.write_text(json.dumps({"message": message, "timestamp": when}))
    found = ProcessFailure(local_rank=0, pid=1, exitcode=exit_status, error_file=str(file))
    found.timestamp = when
    return found


def test_the_cause_is_told_and_not_what_followed(tmp_path: Path) -> None:
    lost, ended = failure(75, 1, tmp_path, "lost"), failure(-signal.SIGTERM, 2, tmp_path)
    refused, killed, crashed = failure(2, 3, tmp_path, "no such image"), failure(-9, 4, tmp_path), failure(1, 5, tmp_path)
    order = sorted([crashed, ended, killed, lost, refused], key=launching._order)
    assert order == [refused, killed, crashed, lost, ended]
    explained = [launching._explain(3, cause, lambda: "its start", "again") for cause in (refused, crashed, lost)]
    go_on = "the others were stopped. Continue from its start with: again"
    assert explained == [
        "no such image",
        f"rank 3 ended with exit status 1, what it raised is above; {go_on}",
        f"rank 3 gave up: lost; {go_on}",
    ]


@pytest.mark.parametrize(
    ("others", "environment", "message"),
    [
        (["--devices", "0"], {}, "--devices 0: 1 or more would be right"),
        (["--devices", "3"], {}, "train.batch_size 4 does not divide into 3 devices x 1 portions: 3 or 6 would be right"),
        (["--devices", "2", "--device", "cuda"], {}, "2 processes need as many GPUs, and there are 1: --devices 1"),
        (["--devices", "2"], {"TORCHELASTIC_RUN_ID": "x"}, "under torchrun: its --nproc-per-node says how many"),
    ],
    ids=str,
)
def test_what_cannot_be_started_is_refused(
    others: list[str],
    environment: dict[str, str],
    message: str,
    overrides: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    result = CliRunner().invoke(cli.app, arguments(overrides, tmp_path / "run", *others))
    assert isinstance(result.exception, ConfigError)
    assert message in str(result.exception)
    assert not (tmp_path / "run").exists()


def test_a_run_without_a_checkpoint_continues_from_its_start(tmp_path: Path) -> None:
    assert cli._reached(tmp_path) == "its start, for no checkpoint was written yet,"
