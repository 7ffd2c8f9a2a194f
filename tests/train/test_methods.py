"""The training methods and every option of theirs against the oracle, in double precision."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple, get_args

import pytest
import torch
import yaml
from torch import Tensor, nn

from ddcat_train.attacks import bim
from ddcat_train.choices import MethodName
from ddcat_train.config import PRESETS, AttackConfig, MethodConfig, load_config
from ddcat_train.methods import METHODS, MicroBatch, OptimizerStep
from ddcat_train.methods.ddcat import divide_pixels
from ddcat_train.networks import Segmenter
from tests.train import oracle
from tests.train.batches import batch_of, network_for, settings_of

DIVIDING = ("ddcat", "ddcat-m", "ddcat-n")
METHOD_NAMES = get_args(MethodName)
ATTACKING = tuple(name for name in METHOD_NAMES if METHODS[name].attacks)
CASES = ("even", "odd", "partly ignored", "all ignored", "p all 0", "p all 1")
CONTEXTS = ("pyramid", "aspp")
LETTER = {key: value for part in yaml.safe_load((PRESETS / "_letter.yaml").read_text()).values() for key, value in part.items()}
# Every departure from the defaults alone, and what meets in the computation of the maps; with the methods that take it.
DEPARTURES: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"update": "two-step"}, DIVIDING),
    ({"predicted_mask": "algorithm-2"}, DIVIDING),
    ({"mask_loss_on_ignored": False}, DIVIDING),
    ({"adversarial_share": 0.25}, ("sat", *DIVIDING)),
    ({"adversarial_share": 0.75}, ("sat", *DIVIDING)),
    ({"adversarial_share": 1.0}, ("sat", "ddcat-m", "ddcat-n")),
    ({"deep_weight": 0.0}, METHOD_NAMES),
    ({"deep_weight": 1.3}, METHOD_NAMES),
    ({"beta": 1.5}, ("trades",)),
    ({"sigma": 0.1}, ("gaussian",)),
    ({"start": "clean"}, ("pgd-at", "segpgd-at")),
    ({"start": "random"}, ("sat", *DIVIDING)),
    ({"start": "lower"}, ATTACKING),
    ({"alpha": "eps/n", "epsilon": 0.04, "steps": 2}, ATTACKING),
    ({"predicted_mask": "algorithm-2", "start": "random"}, DIVIDING),
    (LETTER, DIVIDING),
]


class Plan(NamedTuple):
    """A method, what departs from its defaults, and where it is tried."""

    method: str
    chosen: dict[str, Any]
    case: str
    context: str

    def __str__(self) -> str:
        chosen = " ".join(f"{key}={value}" for key, value in self.chosen.items()) or "default"
        return f"{self.method}, {chosen}, {self.case}, {self.context}"


def everywhere(method: str, chosen: dict[str, Any]) -> list[Plan]:
    cases = CASES if method in DIVIDING else CASES[:4]
    return [Plan(method, chosen, case, context) for case in cases for context in CONTEXTS]


DEFAULTS = [plan for index, method in enumerate(METHOD_NAMES) for plan in everywhere(method, {})[index % 3 :: 3]]
ALONE = [everywhere(method, chosen) for chosen, methods in DEPARTURES for method in methods]
# Each departure with two methods and in one place with each, a prime number of places further every time, so that all methods
# and places are visited; with all in all when slow.
TAKING = [
    everywhere(methods[(index + turn) % len(methods)], chosen)
    for index, (chosen, methods) in enumerate(DEPARTURES)
    for turn in range(min(2, len(methods)))
]
TELLING = [[plan for plan in plans if plan.case != "all ignored"] for plans in TAKING]
VISITED = [plans[7 * index % len(plans)] for index, plans in enumerate(TELLING)]
VISITED += [Plan("ddcat", {"mask_loss_on_ignored": False}, case, "pyramid") for case in ("partly ignored", "all ignored")]
OTHERS = [plan for plans in ALONE for plan in plans if plan not in VISITED]
OTHERS += [plan for method in METHOD_NAMES for plan in everywhere(method, {}) if plan not in DEFAULTS]


def choice_of(options: MethodConfig, attack: AttackConfig) -> Any:
    return oracle.Choice(**options.model_dump(exclude={"split"}), **attack.model_dump())


@contextmanager
def images_in_training(network: Segmenter) -> Iterator[list[Tensor]]:
    """Collect what enters the network in train mode."""
    seen: list[Tensor] = []
    with network.normalise.register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0].detach().clone()) if module.training else None
    ):
        yield seen


def gradients(update: OptimizerStep, network: nn.Module) -> dict[str, Tensor]:
    names = {parameter: name for name, parameter in network.named_parameters()}
    found = torch.autograd.grad(update.loss, update.parameters, retain_graph=True, allow_unused=True)
    return {
        names[parameter]: torch.zeros_like(parameter) if gradient is None else gradient
        for parameter, gradient in zip(update.parameters, found, strict=True)
    }


def close(found: Tensor, expected: Tensor | float, tolerance: float = 1e-8) -> bool:
    reference = torch.as_tensor(expected, dtype=torch.float64)
    return torch.allclose(found.double(), reference, rtol=tolerance, atol=tolerance)


def assert_same_step(network: Segmenter, updates: list[OptimizerStep], expected: Any) -> None:
    """Compare losses, the parameters of each update, every gradient, and the batch-norm buffers."""
    assert len(updates) == len(expected.gradients)
    log = updates[0].log
    assert {"main", "auxiliary", "mask", "deep", "divergence"} & log.keys() == expected.losses.keys()
    for name, loss in expected.losses.items():
        assert close(log[name], loss), name
    assert close(torch.stack([update.loss.detach() for update in updates]).sum(), expected.total)
    for update, reference in zip(updates, expected.gradients, strict=True):
        found = gradients(update, network)
        assert found.keys() == reference.keys()
        for name, gradient in reference.items():
            assert close(found[name], gradient), name
    for name, buffer in network.named_buffers():
        assert close(buffer, expected.buffers[name], 1e-12), name


def assert_same_masks(log: Any, expected: Any) -> None:
    assert close(log["mask_share"], expected.masks.double().mean(), 1e-6)
    assert close(log["chosen_share"], expected.predicted.double().mean(), 1e-6)


# A batch, and what forces the mask branch
CASES: dict[str, Callable[[], tuple[MicroBatch, float | None]]] = {
    "even": lambda: (batch_of(4), None),
    "odd": lambda: (batch_of(3), None),
    "partly ignored": lambda: (batch_of(5, ignored=(0.3, 1.0, 0.0, 0.6, 1.0)), None),
    "all ignored": lambda: (batch_of(3, ignored=(1.0, 1.0, 1.0)), None),
    "p all 0": lambda: (batch_of(3, ignored=(0.2,)), -1e3),
    "p all 1": lambda: (batch_of(3, ignored=(0.2,)), 1e3),
}


@pytest.mark.parametrize(
    "plan", [*DEFAULTS, *VISITED, *(pytest.param(plan, marks=pytest.mark.slow) for plan in OTHERS)], ids=str
)
def test_a_step_is_that_of_the_oracle(
    plan: Plan,
) -> None:
    micro_batch, mask_bias = CASES[plan.case]()
    options, attack = settings_of(plan.method, plan.chosen)
    network = network_for(options, micro_batch, context=plan.context, mask_bias=mask_bias)
    choice = choice_of(options, attack)
    expected = oracle.step(network, micro_batch.images, micro_batch.labels, micro_batch.seeds, choice)
    if plan.method == "sat" or plan.method in DIVIDING:
        micro_batch = replace(micro_batch, clean=options.clean_images(len(micro_batch.images)))
        assert micro_batch.clean == expected.clean
    with images_in_training(network) as seen:
        updates = METHODS[options.name].step(network, micro_batch, attack=attack, options=options)

    (trained_on,) = seen
    assert close(trained_on, expected.images, 1e-12)
    assert_same_step(network, updates, expected)
    if plan.method in DIVIDING:
        assert_same_masks(updates[0].log, expected)
    assert_case_is_what_it_says(plan, expected, micro_batch, attack, mask_bias)


def assert_case_is_what_it_says(
    plan: Plan, expected: Any, micro_batch: MicroBatch, attack: AttackConfig, mask_bias: float | None
) -> None:
    """So that a comparison with the oracle cannot be an empty one."""
    count, clean = len(micro_batch.images), expected.clean
    assert all(torch.isfinite(gradient).all() for update in expected.gradients for gradient in update.values())
    attacked = expected.images[count:] if plan.method == "trades" else expected.images[clean:]
    moved = (attacked - micro_batch.images[clean:]).abs().amax((1, 2, 3)) > 0
    if plan.method != "undefended":
        assert moved.all() or attack.start == "clean"
        assert moved.any() or plan.case == "all ignored"
    assert torch.equal(expected.images[:clean], micro_batch.images[:clean])
    assert all(loss != 0 or plan.case == "all ignored" or "p all" in plan.case for loss in expected.losses.values())
    if plan.case == "all ignored":
        assert expected.losses.keys() - {"mask"} == {name for name, loss in expected.losses.items() if loss == 0} - {"mask"}
    if plan.method in DIVIDING:
        marked = {"ddcat": slice(0, clean), "ddcat-m": slice(0, count), "ddcat-n": slice(clean, count)}[plan.method]
        assert expected.masks.sum() == expected.masks[marked].sum()
        assert expected.masks.any() or plan.case == "all ignored" or marked.start == marked.stop
        p = expected.predicted.double().mean()
        assert p == (mask_bias > 0) if mask_bias is not None else 0.05 < p < 0.95


@pytest.mark.parametrize("clean", [0, 3])
@pytest.mark.parametrize("method", ["sat", "ddcat", *(pytest.param(name, marks=pytest.mark.slow) for name in DIVIDING[1:])])
@pytest.mark.parametrize(
    "chosen", [{}, pytest.param(LETTER | {"start": "clean"}, marks=pytest.mark.slow)], ids=["default", "algorithm-2"]
)
def test_a_micro_batch_may_be_all_clean_or_all_adversarial(
    method: str,
    clean: int,
    chosen: dict[str, Any],
) -> None:
    micro_batch = replace(batch_of(3, ignored=(0.2,)), clean=clean)
    options, attack = settings_of(method, chosen if method != "sat" else {})
    network = network_for(options, micro_batch, context="aspp")
    choice = choice_of(options, attack)
    expected = oracle.step(network, micro_batch.images, micro_batch.labels, micro_batch.seeds, choice, clean=clean)
    assert_same_step(network, METHODS[options.name].step(network, micro_batch, attack=attack, options=options), expected)


@pytest.mark.parametrize(
    ("method", "chosen"),
    [
        ("sat", {}),
        ("trades", {}),
        ("ddcat-m", {}),
        ("ddcat-n", LETTER),
        ("ddcat", {"mask_loss_on_ignored": False}),
        *(
            pytest.param(method, chosen, marks=pytest.mark.slow)
            for method in METHOD_NAMES
            for chosen in ({}, LETTER)[: 1 + (method in DIVIDING)]
            if (method, chosen) not in (("sat", {}), ("trades", {}), ("ddcat-m", {}), ("ddcat-n", LETTER))
        ),
    ],
)
@pytest.mark.parametrize(("cut", "clean"), [(1, 2), pytest.param(3, 1, marks=pytest.mark.slow)])
def test_two_micro_batches_are_summed_to_the_whole(
    method: str,
    chosen: dict[str, Any],
    cut: int,
    clean: int,
) -> None:
    options, attack = settings_of(method, chosen)
    whole = replace(batch_of(4, ignored=(0.9, 0.0, 0.4)), clean=clean)  # each micro-batch has another share of valid pixels
    parts = [
        replace(
            whole,
            images=whole.images[part],
            labels=whole.labels[part],
            seeds=whole.seeds[part],
            clean=min(max(clean - part.start, 0), part.stop - part.start),
        )
        for part in (slice(0, cut), slice(cut, 4))
    ]
    network = network_for(
        options, whole
    ).eval()  # batch norm in training sees a micro-batch at a time: with it they are not equal
    together, first, second = (
        METHODS[options.name].step(network, micro_batch, attack=attack, options=options) for micro_batch in (whole, *parts)
    )
    for update, one, other in zip(together, first, second, strict=True):
        assert close(one.loss + other.loss, update.loss)
        assert update.parameters == one.parameters == other.parameters
        expected, halves = gradients(update, network), (gradients(one, network), gradients(other, network))
        for name, gradient in expected.items():
            assert close(halves[0][name] + halves[1][name], gradient), name
        assert all(close(one.log[name] + other.log[name], value, 1e-6) for name, value in update.log.items())


@pytest.mark.parametrize("method", ["undefended", "ddcat", "trades"])
def test_dropout_acts_in_training_and_never_in_the_attack(
    method: str,
) -> None:
    micro_batch = batch_of(3)
    options, attack = settings_of(method, LETTER if method == "ddcat" else {})
    network = network_for(options, micro_batch, dropout=0.5)
    choice = choice_of(options, attack)
    expected, another = (
        oracle.step(network, micro_batch.images, micro_batch.labels, micro_batch.seeds, choice, dropout_seed=seed)
        for seed in (5, 6)
    )
    assert another.losses["main"] != expected.losses["main"]
    torch.manual_seed(5)  # the oracle draws from here when it trains: the method must have drawn nothing before
    updates = METHODS[options.name].step(network, micro_batch, attack=attack, options=options)
    assert_same_step(network, updates, expected)


@pytest.mark.parametrize("chosen", [{}, LETTER], ids=["default", "letter"])
def test_in_single_precision_few_pixels_differ(
    chosen: dict[str, Any],
) -> None:
    micro_batch = batch_of(4)
    options, attack = settings_of("ddcat", chosen)
    network = network_for(options, micro_batch)
    choice = choice_of(options, attack)
    expected = oracle.step(network, micro_batch.images, micro_batch.labels, micro_batch.seeds, choice)
    single = replace(micro_batch, images=micro_batch.images.float())
    division = divide_pixels(network.float(), single, attack=attack, predict_mask=options.predicted_mask == "algorithm-2")
    assert (division.chosen is None) == (not chosen)
    assert ((division.images - expected.images).abs() > 1e-6).double().mean() < 0.01
    assert (division.masks != expected.masks).double().mean() < 0.01


@pytest.mark.parametrize("preset", ["scenes-sat-fgsm", "camvid-sat-fgsm"])
def test_the_control_that_leaks_labels_is_trained_on_fgsm(preset: str) -> None:
    config, micro_batch = load_config(preset), batch_of(3, ignored=(0.3,))
    network = network_for(config.method, micro_batch)
    epsilon = config.attack.epsilon
    expected = bim(network, micro_batch.images[1:], micro_batch.labels[1:], epsilon=epsilon, alpha=epsilon, steps=1)
    with images_in_training(network) as seen:
        METHODS["sat"].step(network, micro_batch, attack=config.attack, options=config.method)
    assert config.method == MethodConfig(name="sat")
    assert torch.equal(seen[0], torch.cat([micro_batch.images[:1], expected]))
    assert (expected - micro_batch.images[1:]).abs().max() == pytest.approx(0.03)


def test_a_nan_of_the_branch_that_is_not_chosen_stays_out_of_the_maps() -> None:
    micro_batch = batch_of(4)
    options, attack = settings_of("ddcat", {})
    network = network_for(options, micro_batch, mask_bias=-1e3)  # p = 0: the main branch everywhere
    expected = divide_pixels(network, micro_batch, attack=attack)
    with torch.no_grad():
        network.heads["auxiliary"][-1].bias.fill_(float("nan"))
    found = divide_pixels(network, micro_batch, attack=attack)
    assert expected.masks.any()
    assert torch.equal(found.masks, expected.masks)
