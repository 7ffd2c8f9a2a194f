import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ddcat.bundle import Bundle
from ddcat_bench.describe import describe_reference
from ddcat_bench.errors import BenchError
from ddcat_bench.inputs import check_sizes
from ddcat_train.checkpoints import Checkpoint, Imported
from ddcat_train.config import parse_config
from ddcat_train.data import Dataset


def _trained(checkpoint: Checkpoint, **parts: Any) -> Checkpoint:
    tree = checkpoint.description.config.model_dump(mode="json")
    for part, change in parts.items():
        tree[part] = tree[part] | change if isinstance(change, dict) else change
    config = parse_config(tree, "a test")
    return replace(checkpoint, description=checkpoint.description.model_copy(update={"config": config}))


def test_seeds_and_machines_share_their_training(checkpoint: Checkpoint) -> None:
    here = describe_reference(checkpoint)
    assert here.seed == 0
    assert here.training is not None
    there = _trained(checkpoint, seed=7, data={"root": "/elsewhere"}, train={"workers": 1, "evaluate_every": 3})
    assert describe_reference(there) == here.model_copy(update={"seed": 7})
    assert str(checkpoint.description.config.data.root) not in json.dumps(here.training)


@pytest.mark.parametrize(
    "change",
    [
        {"method": {"adversarial_share": 1.0}},
        {"method": {"name": "ddcat", "update": "two-step"}},
        {"attack": {"steps": 1}},
        {"train": {"epochs": 2}},
        {"optim": {"lr": 0.02}},
    ],
)
def test_what_changes_the_weights_tells_trainings_apart(checkpoint: Checkpoint, change: dict[str, Any]) -> None:
    assert describe_reference(_trained(checkpoint, **change)).training != describe_reference(checkpoint).training


def test_an_attack_that_only_the_evaluation_had_is_not_of_the_training(checkpoint: Checkpoint) -> None:
    weak, strong = (_trained(checkpoint, method={"name": "undefended"}, attack={"steps": steps}) for steps in (1, 3))
    assert describe_reference(weak) == describe_reference(strong)


def test_weights_are_named_without_their_folder(checkpoint: Checkpoint) -> None:
    entry = describe_reference(_trained(checkpoint, model={"pretrained": "/private/weights/resnet.safetensors"}))
    assert entry.training is not None
    assert entry.training["model"]["pretrained"] == "resnet.safetensors"


def test_of_an_imported_checkpoint_the_training_is_not_known(checkpoint: Checkpoint) -> None:
    imported = Imported(file=Path("x.pth").name, sha256="0" * 64, epoch=None, like="voc-pspnet50-sat")
    entry = describe_reference(
        replace(checkpoint, description=checkpoint.description.model_copy(update={"imported": imported}))
    )
    assert entry.seed is None
    assert entry.training is None


@pytest.mark.parametrize(("higher", "free"), [(0, True), (0, False), (1, False)])
def test_an_engine_of_other_sizes_than_the_images_is_refused(
    scenes: Dataset, make_bundle: Callable[..., Bundle], higher: int, free: bool
) -> None:
    height, width = scenes.size(0)
    bundle = make_bundle() if free else make_bundle(height + higher, width)
    if not higher:
        check_sizes(bundle, scenes)
        return
    with pytest.raises(BenchError, match=rf"takes height {height + 1}, .* 5 of the 5 images .* of {height}x{width} .* --size"):
        check_sizes(bundle, scenes)
