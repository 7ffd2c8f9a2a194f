"""Golden images: what is packed is read back, and a replay counts what differs."""

import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from ddcat.bundle import Bundle, entries, write_bundle
from ddcat.engines import open_engine
from ddcat.engines.errors import EngineError
from ddcat.engines.golden import FILE, Example, compare, label_images, pack, read_golden, replay
from ddcat.manifest import Golden

U8 = npt.NDArray[np.uint8]
GOLDEN = Golden(file=FILE, images=2, source="drawn", attack={"name": "none"})


def pictures() -> dict[str, U8]:
    random = np.random.default_rng(3)
    shapes = {"clean.0": (9, 12), "adversarial.0": (9, 12), "clean.1": (16, 8), "adversarial.1": (16, 8)}
    return {name: random.integers(0, 256, (*shape, 3)).astype(np.uint8) for name, shape in shapes.items()}


def with_golden(bundle: Bundle, content: bytes, where: Path) -> Bundle:
    files = {**bundle.files, FILE: content}
    return write_bundle(where, bundle.manifest.model_copy(update={"files": entries(files), "golden": GOLDEN}), files)


def test_an_engine_labels_them_and_agrees_with_itself(bundle: Bundle, oracle: Callable, tmp_path: Path) -> None:
    with open_engine(bundle, threads=1) as engine:
        examples = label_images(engine, pictures())
        for name, image, labels in examples:
            np.testing.assert_array_equal(labels, oracle(image[None])[0][0], name)
        content = pack(examples)
        again = read_golden(with_golden(bundle, content, tmp_path / "golden"))
        found = replay(engine, again)
    assert (found.pixels, found.differing, found.share, found.worst_share) == (2 * (9 * 12 + 16 * 8), 0, 0.0, 0.0)
    assert {example.name for example in again} == set(pictures())
    assert content == pack(reversed(examples))


def test_what_differs_is_counted(bundle: Bundle) -> None:
    with open_engine(bundle, threads=1) as engine:
        examples = list(label_images(engine, pictures()))
        changed = examples[2].labels.copy()
        changed[:2, :5] ^= 1
        found = replay(engine, [*examples[:2], examples[2]._replace(labels=changed), examples[3]])
    assert (found.differing, found.worst, found.worst_share) == (10, "clean.1", 10 / 128)
    assert found.share == 10 / found.pixels


@given(st.dictionaries(st.sampled_from("abcd"), st.tuples(st.integers(0, 12), st.booleans()), min_size=1))
def test_only_what_is_expected_is_compared(cases: Mapping[str, tuple[int, bool]]) -> None:
    blank = np.zeros((3, 4), np.uint8)
    found = [
        Example(name, np.zeros((3, 4, 3), np.uint8), (np.arange(12) < wrong).reshape(3, 4).astype(np.uint8))
        for name, (wrong, _) in cases.items()
    ]
    known = {name: blank for name, (_, expected) in cases.items() if expected}
    if not known:
        with pytest.raises(EngineError, match="no golden image"):
            compare(found, known)
        return
    wrongs = [wrong for wrong, expected in cases.values() if expected]
    result = compare(found, known)
    assert (result.pixels, result.differing) == (12 * len(wrongs), sum(wrongs))
    assert result.worst_share == max(wrongs) / 12
    assert cases[result.worst][0] == max(wrongs)


def test_a_bundle_may_have_none(bundle: Bundle) -> None:
    assert read_golden(bundle) == ()


@pytest.mark.parametrize("damage", ["no file", "no labels", "size", "dtype", "count", "more", "BF16"])
def test_a_file_that_is_not_golden_is_refused(bundle: Bundle, tmp_path: Path, damage: str) -> None:
    tensors: dict[str, npt.NDArray] = {}
    for name, image in pictures().items():
        tensors |= {f"{name}.image": image, f"{name}.labels": image[..., 0].copy()}
    if damage in ("no labels", "count"):
        del tensors["clean.0.labels"]
    if damage == "count":
        del tensors["clean.0.image"]
    if damage == "size":
        tensors["clean.0.labels"] = np.zeros((3, 3), np.uint8)
    if damage == "dtype":
        tensors["clean.0.labels"] = tensors["clean.0.labels"].astype(np.int32)
    if damage == "BF16":
        tensors["clean.0.labels"] = tensors["clean.0.labels"].astype(np.int16)
    if damage == "more":
        tensors["more"] = np.zeros(3, np.uint8)
    content = b"{}" if damage == "no file" else safetensors.numpy.save(tensors)
    if damage == "BF16":
        content = content.replace(b'"I16"', b'"BF16"')
        content = struct.pack("<Q", struct.unpack("<Q", content[:8])[0] + 1) + content[8:]
    with pytest.raises(EngineError, match=rf"{FILE} (is not a safetensors file|holds).*: export again"):
        read_golden(with_golden(bundle, content, tmp_path / "golden"))
