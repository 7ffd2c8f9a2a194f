"""Pictures of what a network does: what they show, and that making them changes nothing."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddcat.classes import IGNORED_COLOUR, Classes, colourise
from ddcat_train.attacks import bim
from ddcat_train.checkpoints import LAST, build_network, load_checkpoint
from ddcat_train.config import Config, load_config
from ddcat_train.data import Dataset, open_dataset
from ddcat_train.data.dataset import U8
from ddcat_train.networks import Segmenter
from ddcat_train.run import image_grid, panels
from ddcat_train.run.image_grid import Picture, draw_sheet
from ddcat_train.run.loop import train
from ddcat_train.run.panels import draw_panels
from ddcat_train.run.trainer import Trainer
from tests.train.runs import Finished

COLUMNS = ["input", "attacked", "prediction for input", "prediction for attacked", "truth"]


def config_of(method: str, tiny_run: list[str]) -> Config:
    return load_config(f"scenes-{method}", [*tiny_run, "train.epochs=1"])


@pytest.fixture(autouse=True)
def panels_that_nobody_looks_at() -> None:
    """Here they are looked at, in their size."""


@pytest.fixture
def scenes(tiny_scenes: Path) -> Dataset:
    return open_dataset("scenes", tiny_scenes, "val")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], list[list[Picture]]]]:
    """What was to be drawn: headings and rows."""
    seen: list[tuple[list[str], list[list[Picture]]]] = []

    def remember(title: str, headings: list[str], rows: list[list[Picture]], classes: Classes) -> U8:
        seen.append((list(headings), rows))
        return draw_sheet(title, headings, rows, classes)

    monkeypatch.setattr(panels, "draw_sheet", remember)
    return seen


def lived_in(config: Config, scenes: Dataset) -> Segmenter:
    """A network that predicts several classes on both branches, and in whose mask both values are."""
    torch.manual_seed(3)
    network = build_network(config, len(scenes.classes)).double()
    images = torch.stack([torch.from_numpy(scenes.read(i).image).permute(2, 0, 1) / 255 for i in range(4)]).double()
    heads = [head for head in ("main", "auxiliary", "mask") if head in network.heads]
    with torch.no_grad():
        for _ in range(20):
            network(images)
        for head, logits in network.eval()(images, heads).items():
            network.heads[head][-1].bias -= logits.mean((0, 2, 3))
    return network.train()


def draw(network: Segmenter, scenes: Dataset, config: Config, batch_size: int = 4) -> U8:
    return draw_panels(
        network,
        scenes,
        attack=config.attack,
        device=torch.device("cpu"),
        dtype=torch.float64,
        batch_size=batch_size,
        title="here",
    )


@pytest.mark.parametrize("method", ["pgd-at", "ddcat"])
def test_a_row_is_what_it_says(method: str, tiny_run: list[str], scenes: Dataset, drawn: list) -> None:
    config = config_of(method, tiny_run)
    network = lived_in(config, scenes)
    draw(network, scenes, config)
    headings, rows = drawn[0]
    divides = method != "pgd-at"
    assert headings == COLUMNS + ["M: changed by attack", "p for input", "p for attacked"] * divides
    network.eval()
    for index, row in enumerate(rows):
        sample = scenes.read(index)
        image = torch.from_numpy(sample.image).permute(2, 0, 1)[None] / 255
        labels = torch.from_numpy(sample.labels)[None].long()
        image = image.double()
        attack = config.attack
        attacked = bim(network, image, labels, epsilon=attack.epsilon, alpha=0.01, steps=attack.steps)  # from the image on
        assert np.array_equal(row[0].pixels, sample.image)
        assert row[0].caption == sample.name
        assert np.array_equal(row[1].pixels, (attacked * 255).round().byte()[0].permute(1, 2, 0).numpy())
        assert np.abs(row[1].pixels.astype(int) - sample.image).max() in (7, 8)  # 7.65, rounded
        for place, shown in ((2, image), (3, attacked)):
            with torch.no_grad():
                found = network(shown).argmax(1)
            assert np.array_equal(row[place].pixels, colourise(found[0].numpy(), scenes.classes))
            right = (found == labels)[labels != 255].float().mean()
            assert row[place].caption == f"{float(right):.1%} right"
        assert np.array_equal(row[4].pixels, colourise(sample.labels, scenes.classes))
        assert (row[4].pixels[sample.labels == 255] == IGNORED_COLOUR).all()
        if divides:
            combined = []
            for place, shown in ((6, image), (7, attacked)):
                with torch.no_grad():
                    outputs = network(shown, ("main", "auxiliary", "mask"))
                p = outputs["mask"].argmax(1)
                combined.append(torch.where(p == 1, outputs["auxiliary"].argmax(1), outputs["main"].argmax(1)))
                assert np.array_equal(row[place].pixels, p[0, ..., None].expand(-1, -1, 3).byte().numpy() * 255)
                assert row[place].caption == f"{float(p.float().mean()):.1%} of the pixels"
            mask = (combined[0] != combined[1])[0].numpy()
            assert 0 < mask.mean() < 1
            assert np.array_equal(row[5].pixels, np.repeat(mask[..., None], 3, 2) * np.uint8(255))


def test_the_images_are_the_same_and_spread_over_the_split(tiny_run: list[str], scenes: Dataset, drawn: list) -> None:
    config = config_of("undefended", tiny_run)
    network = lived_in(config, scenes)
    many = replace(scenes, pairs=scenes.pairs * 5)  # 20
    one, other = draw(network, many, config), draw(network, many, config, batch_size=3)
    assert np.array_equal(one, other)
    assert [row[0].caption for row in drawn[0][1]] == [many.pairs[index].name for index in (2, 7, 12, 17)]


@pytest.mark.parametrize("method", ["undefended", "ddcat"])
def test_drawing_changes_nothing(method: str, tiny_run: list[str], scenes: Dataset) -> None:
    config = config_of(method, tiny_run)
    network = lived_in(config, scenes)
    network.heads.eval()  # whatever mode each part is in
    modes = [module.training for module in network.modules()]
    state = {key: value.clone() for key, value in network.state_dict().items()}
    random = torch.get_rng_state()
    draw(network, scenes, config)
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_a_run_with_panels_is_one_without(tiny_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config("scenes-ddcat", [*tiny_run, "train.epochs=2", "train.evaluate_every=1", "train.ema=0.9"])
    train(config, tmp_path / "with")
    assert [path.name for path in sorted((tmp_path / "with/panels").iterdir())] == ["step-000003.png", "step-000006.png"]
    monkeypatch.setattr(Trainer, "panels", lambda self: np.zeros((1, 1, 3), np.uint8))
    train(config, tmp_path / "without")
    one, other = (load_checkpoint(tmp_path / name / LAST).tensors for name in ("with", "without"))
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[key]) for key, value in one.items())  # weights, momentum, random states
    logs = [(tmp_path / name / "log.jsonl").read_text() for name in ("with", "without")]
    assert logs[0] == logs[1]


def test_a_run_leaves_them_as_files_and_for_tensorboard(tiny_run: list[str], finished: Finished) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: PLC0415 -- slow, and needed once

    config = load_config("scenes-ddcat", tiny_run)
    run = finished(config)
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"images": 0}).Reload()
    shown = events.Images("val/panels")
    assert [image.step for image in shown] == [6, 9]
    with Image.open(run / "panels/step-000006.png") as opened:
        assert (shown[0].width, shown[0].height) == opened.size
        colours = {colour for _, colour in opened.getcolors(1 << 24)}
    classes = open_dataset("scenes", config.data.root, "val").classes
    assert {*classes.palette, IGNORED_COLOUR} <= colours  # the legend at least
    assert {"val/clean", "val/attacked", "train/mask_share", "train/chosen_share"} <= set(events.Tags()["scalars"])


def plain(height: int, width: int, colour: tuple[int, int, int], caption: str = "") -> Picture:
    return Picture(np.full((height, width, 3), colour, np.uint8), caption)


def where(sheet: U8, colour: tuple[int, int, int]) -> tuple[int, int, int, int, int]:
    """Top, left, height and width of a colour, and how many pixels have it."""
    rows, columns = np.nonzero((sheet == colour).all(-1))
    return rows.min(), columns.min(), np.ptp(rows) + 1, np.ptp(columns) + 1, len(rows)


def test_a_sheet_holds_every_picture_whole_without_a_pixel_of_another_colour() -> None:
    one, two, three, four = (250, 10, 10), (10, 250, 10), (10, 10, 250), (250, 250, 10)
    rows = [[plain(40, 100, one, "first"), plain(40, 100, two)], [plain(100, 30, three), plain(600, 512, four)]]
    drawn = draw_sheet("a title", ["left", "right"], rows, Classes(("a", "b"), ((1, 2, 3), (3, 2, 1))))
    found = [where(drawn, colour) for colour in (one, two, three, four)]
    # twice as large, twice, twice, and shrunk to a side of 256
    assert [place[2:] for place in found] == [(80, 200, 16000), (80, 200, 16000), (200, 60, 12000), (256, 218, 55808)]
    assert found[0][0] == found[1][0] < found[2][0] == found[3][0]
    assert found[0][1] == found[2][1] < found[1][1] == found[3][1]
    for colour in ((1, 2, 3), (3, 2, 1), IGNORED_COLOUR):
        assert where(drawn, colour)[4] > 50


def test_a_white_picture_is_seen_on_white_paper() -> None:
    sheets = [
        draw_sheet("t", ["m"], [[plain(40, 100, (level,) * 3)]], Classes(("a", "b"), ((1, 2, 3), (3, 2, 1))))
        for level in (255, 7)
    ]
    top, left, height, width, _ = where(sheets[1], (7, 7, 7))
    frame = sheets[0][top - 1 : top + height + 1, left - 1 : left + width + 1].copy()
    assert (frame[1:-1, 1:-1] == 255).all()
    frame[1:-1, 1:-1] = 0
    assert (frame < 128).all()


def test_labels_that_are_shrunk_keep_their_colours_and_photographs_are_mixed() -> None:
    stripes = np.zeros((400, 400, 3), np.uint8)
    stripes[:, ::2] = (200, 100, 50)
    exact, mixed = (np.asarray(image_grid._fitted(Picture(stripes, "", smooth=smooth))) for smooth in (False, True))
    assert {tuple(pixel) for pixel in exact.reshape(-1, 3).tolist()} == {(0, 0, 0), (200, 100, 50)}
    assert len(np.unique(mixed.reshape(-1, 3), axis=0)) > 2


def test_many_classes_and_long_names_stay_on_the_sheet() -> None:
    names = tuple(f"a class with a long name {index}" for index in range(40))
    palette = tuple((index, 255 - index, index) for index in range(40))
    caption = "frankfurt/" + "0" * 100 + "_the_end"
    drawn = draw_sheet("t", ["input"], [[plain(64, 64, (9, 9, 9), caption)]], Classes(names, palette))
    for colour in palette:
        assert where(drawn, colour)[4] > 50
    border = np.concatenate([drawn[:8].reshape(-1, 3), drawn[-8:].reshape(-1, 3), drawn[:, -8:].reshape(-1, 3)])
    assert (border == 255).all()


def test_an_image_without_a_label_says_so(tiny_run: list[str], scenes: Dataset, drawn: list) -> None:
    config = config_of("undefended", tiny_run)
    nothing = replace(scenes, decode=lambda labels: np.full_like(labels, 255))
    draw(lived_in(config, scenes), nothing, config)
    assert {row[2].caption for row in drawn[0][1]} == {"no pixel is labelled"}
    assert all(np.array_equal(row[0].pixels, row[1].pixels) for row in drawn[0][1])  # nothing to gain, so nothing attacked
