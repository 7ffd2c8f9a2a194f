"""What docs/training.md says of options, names and files is what there is."""

import re
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from ddcat_train.choices import DatasetName, MethodName
from ddcat_train.config import AttackConfig, MethodConfig, load_config, presets
from ddcat_train.data.classes_file import read_legend
from ddcat_train.data.pictures import read_mask
from tests.train.runs import Finished

PAGE = (Path(__file__).parents[2] / "docs/training.md").read_text(encoding="utf-8")


def table(heading: str) -> list[list[str]]:
    """Rows of the table whose header begins with a cell."""
    lines = PAGE[PAGE.index(f"| {heading} |") :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def code(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def test_every_option_of_methods_and_attacks_is_there_with_its_default() -> None:
    rows = [row for row in re.findall(r"^\| `((?:method|attack)\.\w+)`.*$", PAGE, re.MULTILINE) if row != "method.name"]
    fields = {
        f"{section}.{name}": field
        for section, model in (("method", MethodConfig), ("attack", AttackConfig))
        for name, field in model.model_fields.items()
        if name != "name"
    }
    assert sorted(rows) == sorted(fields)
    for name, field in fields.items():
        row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{name}`"))
        default = row.strip("|").split("|")[2 if name.startswith("method") else 1]
        if field.default is None:
            assert default.strip().startswith("that of the method")
        else:
            assert code(default)[0] == str(field.default).replace("True", "true")


def test_every_method_and_data_set_is_there() -> None:
    assert sorted(name for row in table("`method.name`") for name in code(row[0])) == sorted(get_args(MethodName))
    assert sorted(code(row[0])[0] for row in table("`data.name`")) == sorted(get_args(DatasetName))


def test_the_table_of_presets_covers_all_of_them() -> None:
    methods = "|".join([*get_args(MethodName), "sat-fgsm", "pgd-at-4", "undefended-corruptions", "pgd-at-corruptions"])
    patterns = [
        code(row[0])[0]
        .replace("NETWORK", "(pspnet50|deeplabv3_50)")
        .replace("OTHER", "(efficientnet_lite2|segformer_b0|upernet_convnext_tiny)")
        .replace("METHOD", f"({methods})")
        for row in table("presets")
    ]
    for preset in presets():
        assert sum(re.fullmatch(pattern, preset) is not None for pattern in patterns) == 1, preset
    for row, pattern in zip(table("presets"), patterns, strict=True):
        configs = [load_config(preset) for preset in presets() if re.fullmatch(pattern, preset)]
        for crop in re.findall(r"crop (\d+)", row[1]):
            assert {config.augment.crop for config in configs} == {(int(crop), int(crop))}
        for epochs in re.findall(r"(\d+) epochs", row[1]):
            assert {config.train.epochs for config in configs} == {int(epochs)}


@pytest.mark.parametrize("method", ["undefended", "ddcat"])
def test_a_run_folder_holds_the_files_that_are_listed(method: str, tiny_run: list[str], finished: Finished) -> None:
    listed = {name.split("/")[0] for row in table("file") for name in code(row[0])}
    found = {path.name for path in finished(load_config(f"scenes-{method}", tiny_run)).iterdir()}
    assert found == listed - ({"mask.png"} if method == "undefended" else set())


HOW_TO = (Path(__file__).parents[2] / "docs/how-to/train-on-your-data.md").read_text(encoding="utf-8")


def test_masks_of_16_bits_become_indices_as_the_page_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (script,) = re.findall(r"^```python\n(.*?)^```$", HOW_TO, re.MULTILINE | re.DOTALL)
    (tmp_path / "masks/train").mkdir(parents=True)
    Image.fromarray(np.array([[0, 1], [2, 255]], np.uint16)).save(tmp_path / "masks/train/0001.png")
    monkeypatch.chdir(tmp_path)
    exec(script, {})
    assert read_mask(tmp_path / "mine/labels/train/0001.png").pixels.tolist() == [[0, 1], [2, 255]]


def test_every_classes_file_of_the_page_is_read(tmp_path: Path) -> None:
    rows = re.findall(r"^\| [^|]+ \| (`names: [^|]+) \|$", HOW_TO, re.MULTILINE)
    legends = []
    for row in rows:
        (tmp_path / "classes.yaml").write_text("\n".join(re.findall(r"`([a-z_]+: [^`]+)`", row)))
        legends.append(read_legend(tmp_path / "classes.yaml"))
    values = np.array([0, 1, 2, 3, 11, 12, 255], np.uint8)
    assert [legend.table(values).tolist() for legend in legends[:4]] == [
        [0, 1, 2, 254, 254, 254, 255],
        [255, 0, 1, 2, 254, 254, 255],
        [0, 254, 254, 254, 254, 254, 1],
        [0, 1, 254, 254, 255, 255, 255],
    ]
    assert legends[4].colours == {(0, 0, 0): 255, (128, 64, 128): 0, (64, 0, 128): 1}
