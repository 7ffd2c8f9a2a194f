"""The step of a paper's preset beside that of the released code itself; see `tests.released_code`."""

from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ddcat_train import imagenet
from ddcat_train.checkpoints import build_network
from ddcat_train.config import load_config
from ddcat_train.losses import valid_pixels
from ddcat_train.methods import METHODS, MicroBatch
from ddcat_train.methods.ddcat import divide_pixels
from ddcat_train.networks import Segmenter
from ddcat_train.optimizer import add_gradients, apply_gradients, build_optimizer, set_learning_rate
from tests.released_code import needs_released_code, released

pytestmark = needs_released_code
CLASSES, STEPS = 21, 5
# theirs: ours
NAMES = {f"layer{stage}.": f"backbone.layer{stage}." for stage in range(5)} | {
    "ppm.": "context.", "aspp.": "context.", "cls1.": "heads.main.", "cls2.": "heads.auxiliary.", "mask1.": "heads.mask.",
    "aux_cls1.": "heads.deep.", "cls.": "heads.main.", "aux.": "heads.deep.",
}  # fmt: skip
MEAN, STD = (torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1) for values in (imagenet.MEAN, imagenet.STD))


SCRIPTS = {"ddcat_psp": "voc-pspnet50-ddcat", "ddcat_aspp": "voc-deeplabv3_50-ddcat", "sat_psp": "voc-pspnet50-sat"}


@pytest.fixture(params=SCRIPTS)
def script(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    with released(f"tool_train/train_{request.param}.py") as module:
        module.args = SimpleNamespace(  # type: ignore[attr-defined]
            epochs=STEPS, base_lr=0.01, power=0.9, zoom_factor=8, use_apex=False, multiprocessing_distributed=False,
            classes=CLASSES, ignore_label=255, aux_weight=0.4, print_freq=1000,
        )  # fmt: skip
        module.preset = SCRIPTS[request.param]  # type: ignore[attr-defined]
        yield module


def theirs_of(script: Any, ours: Segmenter) -> tuple[nn.Module, dict[str, str]]:
    """Their network with our weights, and our key of each of theirs."""
    name = "PSPNet" if "pspnet" in script.preset else "DeepLabV3"
    build = getattr(script, f"{name}_DDCAT" if "mask" in ours.heads else name)
    network = build(layers=50, classes=CLASSES, dropout=0.0, zoom_factor=8, pretrained=False).double()
    keys = {}
    for key in network.state_dict():
        start = next(start for start in NAMES if key.startswith(start))
        keys[key] = NAMES[start] + key.removeprefix(start)
    weights = ours.state_dict()
    network.load_state_dict({key: weights[name].clone() for key, name in keys.items()})
    return network, keys


def parameter_groups(network: nn.Module) -> list[dict[str, Any]]:
    """As main_worker() of the released script makes them: the backbone's five first."""
    order = ("layer0", "layer1", "layer2", "layer3", "layer4", "ppm", "aspp", "cls1", "cls2", "mask1", "aux_cls1", "cls", "aux")
    return [{"params": getattr(network, name).parameters()} for name in order if hasattr(network, name)]


@pytest.mark.parametrize("count", [4, 5])
def test_a_step_is_the_released_one(script: Any, count: int) -> None:
    config = load_config(script.preset, ["model.dropout=0"])
    torch.manual_seed(0)
    ours = build_network(config, CLASSES).double().train()
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(count, 3, 33, 41, dtype=torch.float64, generator=generator)
    labels = torch.randint(CLASSES, (count, 33, 41), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.1] = 255
    with torch.no_grad():  # lived-in batch-norm statistics, with which an attack changes some predictions
        for _ in range(5):
            ours(images, tuple(ours.heads))
        if "mask" in ours.heads:
            ours.heads["mask"][4].bias.copy_(torch.tensor([0.0, 0.1]))
    theirs, keys = theirs_of(script, ours)
    groups = parameter_groups(theirs)
    optimizer = torch.optim.SGD(groups, lr=0.01, momentum=0.9, weight_decay=1e-4)
    criterion = nn.CrossEntropyLoss(ignore_index=255)
    normalised = (images - MEAN) / STD

    clean = config.method.clean_images(count)
    micro_batch = MicroBatch(images, labels, torch.arange(count), clean, valid_pixels(labels), labels.numel())
    if "mask" in ours.heads:
        division = divide_pixels(ours, micro_batch, attack=config.attack)
        adversarial, marked, _ = script.BIM(normalised.clone(), labels, theirs, criterion, optimizer)
        expected = torch.cat([images[:clean], adversarial[clean:] * STD + MEAN])
        assert float((division.images - expected).abs().max()) < 1e-12
        assert torch.equal(division.masks[:clean], marked[:clean])
        assert not division.masks[clean:].any()
        assert 0 < float(marked.double().mean()) < 1

    for network, batch in ((theirs, normalised), (ours, images)):
        network.eval()
        assert batch.dtype is torch.float64
    with torch.no_grad():
        close(ours(images), theirs(normalised), 1e-10)
    for network in (theirs, ours):
        network.train()

    mine = build_optimizer(ours, config.optim)
    set_learning_rate(mine, config.optim, step=0, steps=STEPS)
    updates = METHODS[config.method.name].step(ours, micro_batch, attack=config.attack, options=config.method)
    gradients = add_gradients(updates)
    apply_gradients(mine, updates, gradients)
    loss, *_ = script.train([(normalised, labels)], model=theirs, optimizer=optimizer, epoch=0, criterion=criterion)

    logged = {name: float(value) for update in updates for name, value in update.log.items()}
    assert sum(logged[name] for name in ours.heads if name != "deep") == pytest.approx(loss, rel=1e-12)
    own, state = dict(ours.named_parameters()), ours.state_dict()
    for name, parameter in theirs.named_parameters():
        assert parameter.grad is not None
        found = own[keys[name]].grad
        assert found is not None
        close(found, parameter.grad, 1e-9)
    for name, value in theirs.state_dict().items():
        close(state[keys[name]].double(), value.double(), 1e-10)


def close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    scale = max(float(expected.abs().max()), 1e-6)
    assert float((found - expected).abs().max()) <= tolerance * scale
