"""Two ranks over gloo on the CPU are equal to one process."""

import dataclasses
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ddcat_train.config import Config
from ddcat_train.distributed.batch_norm import synchronise_batch_norm
from ddcat_train.distributed.partition import check_partition, clean_images, rank_slice
from ddcat_train.distributed.ranks import ALONE, Ranks, init_distributed
from ddcat_train.errors import ConfigError
from ddcat_train.evaluation import evaluate
from ddcat_train.run.trainer import Trainer
from tests.train.ranks import Together, call_together


def steps(config: Config, ignored: dict[int, float]) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    """Three steps; `ignored` is the share of rows that are ignored, by the place in the whole batch."""
    trainer = Trainer(config, device="cpu")
    for module in trainer._network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.9  # so that the network in eval() soon answers what an attack can change
    places = rank_slice(trainer.ranks.rank, trainer.ranks.size, config)
    logs = []
    for batch, _ in zip(trainer.batches(), range(3), strict=False):
        for labels, place in zip(batch.labels, places, strict=True):
            labels[: round(33 * ignored.get(place, 0))] = 255
        logs.append({name: float(value) for name, value in trainer.train_step(batch).items()})
    return logs, trainer._network.state_dict()


def assert_close(found: tuple[list[dict[str, float]], dict[str, Tensor]], expected: Any) -> None:
    """Logs and weights, as `steps` gives them."""
    for values, wanted in zip(found[0], expected[0], strict=True):
        assert values == pytest.approx(wanted, rel=1e-10, abs=1e-12)
    assert found[1].keys() == expected[1].keys()
    for name, value in expected[1].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-9, atol=1e-11, msg=name)


UNEVEN = {0: 0.3, 1: 1.0, 3: 0.9, 4: 0.6}
ONE_RANK = {1: 1.0, 3: 1.0, 5: 1.0}  # the whole share of rank 1


@pytest.mark.parametrize(
    ("method", "overrides", "ignored"),
    [
        ("sat", ["method.split=global", "train.batch_size=8", "train.accumulate=2"], UNEVEN),
        ("ddcat", ["method.split=global", "method.update=two-step", "method.predicted_mask=algorithm-2"], ONE_RANK),
        ("pgd-at", ["optim={name: adamw, lr: 0.001, warmup: 0.5, layer_decay: 0.8, clip_norm: 0.5}"], UNEVEN),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("undefended", [], UNEVEN),
                ("pgd-at", ["method.name=trades"], ONE_RANK),
                ("sat", ["method.split=global"], ONE_RANK),
                ("sat", ["method.split=global", "method.adversarial_share=0.3", "model.context=aspp"], {}),
                ("ddcat", ["method.split=global"], UNEVEN),
                ("ddcat", ["method.split=global", "method.mask_loss_on_ignored=false", "train.batch_size=2"], {0: 0.5}),
                (
                    "ddcat",
                    ["method.split=global", "method.update=two-step", "train.batch_size=12", "train.accumulate=3"],
                    UNEVEN,
                ),
                ("pgd-at", [], UNEVEN),
                ("ddcat-m", ["method.split=global"], UNEVEN),
                ("ddcat-n", ["method.split=global"], UNEVEN),
                ("segpgd-at", [], UNEVEN),
            )
        ),
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
    assert all(values["loss"] > 0.1 for values in logs)
    assert method != "ddcat" or all(0.001 < logs[2][name] < 0.999 for name in ("mask_share", "chosen_share"))
    assert all(torch.equal(first[name], second[name]) for name in weights)
    assert_close((first_logs, first), (logs, weights))


def test_micro_batches_are_the_whole_batch_but_for_batch_norm(
    tiny: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nn.BatchNorm2d, "train", lambda module, mode=True: nn.Module.train(module, False))
    whole, parts = (
        steps(tiny("ddcat", "method.split=global", f"train.accumulate={micro_batches}"), UNEVEN) for micro_batches in (1, 3)
    )
    assert all(values["gradient_norm"] > 0 for values in parts[0])
    assert_close(parts, whole)


@pytest.mark.slow
def test_three_ranks_of_which_one_alone_has_a_clean_image(tiny: Callable[..., Config], together: Together) -> None:
    config = tiny("ddcat", "method.split=global", "method.adversarial_share=0.7", "train.batch_size=6")
    assert [clean_images(rank_slice(rank, 3, config), config) for rank in range(3)] == [1, 0, 0]
    expected = steps(config, UNEVEN)
    for found in together(lambda: steps(config, UNEVEN), 3):
        assert_close(found, expected)


def test_bf16_on_two_ranks(tiny: Callable[..., Config], together: Together) -> None:
    config = tiny("ddcat", "method.split=global", "train.precision=bf16")
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
        _, ranks = init_distributed("cpu", "32-true")
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
    config = tiny("undefended")

    def alone_in_eval() -> list[int]:
        trainer = Trainer(config, device="cpu")
        trainer._network.eval()
        if trainer.ranks.rank:
            return []  # rank 0 would wait for it in vain
        return list(trainer._network(torch.rand(1, 3, 33, 33, dtype=torch.float64)).shape)

    assert together(alone_in_eval)[0] == [1, 6, 33, 33]


def test_ranks_that_begin_differently_are_refused(tiny: Callable[..., Config], together: Together) -> None:
    def refused() -> str:
        trainer = Trainer(tiny("undefended", f"seed={os.environ['RANK']}"), device="cpu")
        with pytest.raises(ConfigError) as caught:
            trainer.check_ranks_agree()
        return str(caught.value)

    assert all("ranks 0 and 1 begin with different weights" in message for message in together(refused))


def test_what_ranks_tell_each_other(together: Together) -> None:
    def talk() -> list[Any]:
        _, ranks = init_distributed("cpu", "32-true")
        large = [torch.full((2**22, 3), float(ranks.rank + 1)).T, torch.tensor(ranks.rank), torch.ones(2**23)]  # 3 messages
        ranks.all_reduce_sum(large)
        sums = [float(tensor.max()) for tensor in large]
        return [sums, large[0].is_contiguous(), ranks.all_reduce_max([ranks.rank, -ranks.rank]), ranks.gather("ab"[ranks.rank])]

    assert together(talk) == [[[3.0, 1.0, 2.0], False, [1, 0], ["a", "b"]]] * 2
    assert (ALONE.all_reduce_max([3]), ALONE.gather("a"), Ranks().size) == ([3], ["a"], 1)


# --- shares


def test_shares_are_dealt_out_like_cards(tiny: Callable[..., Config]) -> None:
    config = tiny("sat", "train.batch_size=8")
    assert [rank_slice(rank, 2, config) for rank in range(2)] == [[0, 2, 4, 6], [1, 3, 5, 7]]
    twice = tiny("sat", "train.batch_size=8", "train.accumulate=2")
    shares = [rank_slice(rank, 2, twice) for rank in range(2)]
    assert shares == [[0, 1, 4, 5], [2, 3, 6, 7]]
    assert [sorted(shares[0][j::2] + shares[1][j::2]) for j in range(2)] == [rank_slice(0, 1, twice)[j::2] for j in range(2)]


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
        assert [clean_images(rank_slice(rank, ranks, config), config) for rank in range(ranks)] == counts


def test_split_rank_attacks_a_part_of_every_rank(tiny: Callable[..., Config], together: Together) -> None:
    def attacked() -> list[int]:
        trainer = Trainer(tiny("sat", "method.split=rank"), device="cpu")
        batch = next(trainer.batches())
        seen: list[Tensor] = []
        with trainer._network.normalise.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach())):
            trainer.train_step(batch)
        return [index for index, image in enumerate(batch.images.double()) if not torch.equal(image, seen[-1][index])]

    assert together(attacked) == [[1, 2], [1, 2]]


def test_a_batch_that_does_not_divide_is_refused(tiny: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError, match="batch_size 6 does not divide into 2 devices x 2 micro-batches: use 4 or 8"):
        check_partition(tiny("undefended", "train.accumulate=2"), 2)
    with pytest.raises(ConfigError, match="8 devices x 1 micro-batches: use 8"):
        check_partition(tiny("undefended"), 8)
    with pytest.raises(ConfigError, match="use accumulate 3 or less"):
        tiny("undefended", "train.accumulate=6")


def test_micro_batches_in_which_ddcat_could_mark_nothing_are_refused(tiny: Callable[..., Config]) -> None:
    config = tiny("ddcat", "train.batch_size=4", "method.adversarial_share=0.75")
    check_partition(config, 1)
    with pytest.raises(ConfigError, match=r"leaves none of a micro-batch's 2 images clean.* method.split global"):
        check_partition(config, 2)
    check_partition(tiny("ddcat-m", "train.batch_size=4", "method.adversarial_share=0.75"), 2)
    check_partition(tiny("ddcat", "train.batch_size=4", "method.adversarial_share=0.75", "method.split=global"), 2)


# --- evaluation


def test_evaluation_is_shared_out_and_counts_the_same(tiny: Callable[..., Config], together: Together) -> None:
    def scored() -> tuple[dict[str, float], list[tuple[list[str], list[Any], int]]]:
        trainer = Trainer(tiny("undefended"), device="cpu")
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


def test_a_rank_that_hangs_ends_with_its_stack(tmp_path: Path) -> None:
    def hang() -> None:
        def for_ever_and_ever() -> None:
            time.sleep(1000)

        for_ever_and_ever()

    with pytest.raises(AssertionError, match="for_ever_and_ever"):
        call_together(hang, tmp_path, 2, patience=1)
