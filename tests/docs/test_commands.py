"""
Every command in the pages: it parses, what it names is there, and, where it can be done here, it does what it says.

A block of commands is run as it stands, unless a comment before it says otherwise:

    <!-- sh: parse -->    needs other data or machines: only read
    <!-- sh: install -->  makes an environment: the suite has one
    <!-- sh: gpu -->      may be refused for want of a GPU
    <!-- sh: verdict -->  may end with a verdict of the gate
    <!-- sh: server -->   runs until the page ends, and is waited for
"""

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from ddcat_train.data.synthetic.generate import write_scenes
from docs import make_reference

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
PAGES = sorted(
    page.relative_to(ROOT)
    for page in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"))
    if page.relative_to(ROOT).parts[:2] != ("docs", "reference") and len(page.relative_to(ROOT).parts) < 4
)
BLOCK = re.compile(r"^( *)(?:<!-- sh: (\w+) -->\n+ *)?```sh\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


COMMANDS = {tuple(words.split()): command for words, command in make_reference.commands()}
OLDER = {
    "ddcat-train": ["ddcat", "train"], "ddcat-data": ["ddcat", "data"], "ddcat-export": ["ddcat", "export"],
    "ddcat-bench": ["ddcat"], "ddcat-serve": ["ddcat"],
}  # fmt: skip


class Block(NamedTuple):
    kind: str
    lines: list[str]


def blocks(page: Path) -> list[Block]:
    """The blocks of commands of a page, each command in one line."""
    found = []
    for indent, kind, text in BLOCK.findall((ROOT / page).read_text(encoding="utf-8")):
        joined = re.sub(r"\\\n\s*", "", re.sub(rf"^{indent}", "", text, flags=re.MULTILINE))
        found.append(Block(kind or "run", [line for line in joined.splitlines() if line.strip() and not line.startswith("#")]))
    return found


def simple(line: str) -> Iterator[list[str]]:
    """The commands of a line of shell, without what joins them."""
    words: list[str] = []
    for word in [*shlex.shlex(line, posix=True, punctuation_chars=True), ";"]:
        if set(word) <= set("();<>|&"):
            if words:
                yield words
            words = []
        elif not words and (word in ("do", "done", "then", "if", "fi") or re.fullmatch(r"\w+=.*", word)):
            continue
        else:
            words.append(word)


def commands(page: Path) -> Iterator[list[str]]:
    """All commands of a page, those within its sentences too."""
    text = (ROOT / page).read_text(encoding="utf-8")
    lines = [line for block in blocks(page) for line in block.lines]
    prose = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL)
    names = "|".join(("ddcat", *OLDER))
    lines += re.findall(rf"`((?:{names}|python (?:bench|docs|docker|examples)/|pytest |make )[^`]*)`", prose.replace("\n", " "))
    for line in lines:
        yield from simple(line)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_command_is_one(page: Path) -> None:
    for words in commands(page):
        if words[0] == "ddcat" or words[0] in OLDER:
            parse(words)
        elif words[0] == "python" and len(words) > 1 and words[1].endswith(".py"):
            script = (ROOT / words[1]).read_text(encoding="utf-8")
            options = [word for word in words if word.startswith("--")]
            assert all(f'"{option}"' in script or f"{option[2:]}:" in script for option in options), words
        elif words[0] == "pytest":
            for word in words[1:]:
                assert word.startswith("-") or not word.startswith("tests/") or (ROOT / word).exists(), words
        elif words[0] == "make" and len(words) > 1:
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE), words


def parse(words: list[str]) -> None:
    """The command must be there, and have the options that it is given; a choice must be one."""
    given = [*OLDER.get(words[0], ["ddcat"]), *words[1:]]
    if words[:2] == ["ddcat-serve", "run"]:
        given = ["ddcat", "serve", *words[2:]]
    command = next((command for name, command in COMMANDS.items() if tuple(given[: len(name)]) == name), None)
    groups = {name[:length] for name in COMMANDS for length in range(1, len(name))}
    assert command or tuple(word for word in given if word not in ("--help", "-h", "--version")) in groups, words
    known = {name: parameter for parameter in make_reference.parameters(command) for name in parameter.names} if command else {}
    for place, word in enumerate(words):
        if word.startswith("--") and command and word != "--help":
            name, _, given = word.partition("=")
            assert name in known, words
            choices = re.findall(r"`([^`]+)`", known[name].value)
            given = given or (words[place + 1] if place + 1 < len(words) else "")
            assert not choices or given in choices, words


# --- what can be done here is done ---

RUNS = {
    "docs/tutorial.md": [],
    "docs/how-to/train-on-your-data.md": ["mine", "mine.yaml"],
    "docs/how-to/serve-a-segformer.md": ["mine", "segformer-b0", "segformer.yaml", "image.jpg"],
    "docs/how-to/serve-a-ready-model.md": ["image.jpg"],
    "docs/how-to/many-gpus.md": [],
    "docs/how-to/export-to-tensorrt.md": ["runs/scenes-ddcat", "data/scenes"],
    "docs/how-to/choose-a-precision.md": ["runs/scenes-ddcat", "data/scenes"],
    "docs/how-to/gate-in-ci.md": ["runs/scenes-ddcat", "data/scenes"],
    "docs/how-to/serve.md": ["bundle", "server.yaml"],
    "docs/how-to/predict.md": ["bundle", "scenes"],
    "docs/how-to/scale.md": ["bundle"],
    "docs/training.md": ["letter.yaml", "small.yaml"],
    "docs/export.md": ["runs/scenes-ddcat", "data/scenes"],
    "docs/gate.md": ["runs/scenes-ddcat", "data/scenes", "bundle", "ours.yaml", "key.pem"],
    "docs/serving.md": ["bundle", "image.jpg"],
}


def call(line: str, where: Path) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": ""}
    return subprocess.run(
        line, shell=True, cwd=where, env=environment, capture_output=True, text=True, timeout=900, check=False
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages take for granted, small."""
    folder = tmp_path_factory.mktemp("made")
    write_scenes(folder / "data/scenes", train=8, val=4, size=(96, 96))
    small = "--set augment.crop=48 --set model.width=4 --set train.epochs=1 --set train.batch_size=4"
    (folder / "mine/classes.yaml").parent.mkdir()
    (folder / "mine/classes.yaml").write_text("names: [road, building, tree, sky, vehicle, pole]\n")
    for split in ("train", "val"):
        for kind, source in (("images", "JPEGImages"), ("labels", "SegmentationClass")):
            (folder / "mine" / kind / split).mkdir(parents=True)
            for file in sorted((folder / "data/scenes" / source).glob(f"{split}_*")):
                shutil.copy(file, folder / "mine" / kind / split)
    shutil.copy(next((folder / "data/scenes/JPEGImages").glob("val_*")), folder / "image.jpg")
    shutil.copytree(folder / "data/scenes/JPEGImages", folder / "scenes")
    for name, text in yaml_blocks():
        (folder / name).write_text(text)
    smaller = (folder / "mine.yaml").read_text().replace("512", "80").replace("[257, 257]", "[65, 65]") + "train: {epochs: 1}\n"
    (folder / "mine.yaml").write_text(smaller)  # as it stands it takes a quarter of an hour
    (folder / "segformer.yaml").write_text(smaller_segformer((folder / "segformer.yaml").read_text()))
    save_segformer(folder / "segformer-b0")
    for line in (
        f"ddcat-train scenes-ddcat {small}",
        "ddcat-export runs/scenes-ddcat --engine ort --out bundle",
        "openssl ecparam -name prime256v1 -genkey -noout -out key.pem",
    ):
        assert (done := call(line, folder)).returncode == 0, done.stderr
    return folder


def smaller_segformer(text: str) -> str:
    for usual, small in (("512}", "80}"), ("[257, 257]", "[65, 65]")):
        assert usual in text
        text = text.replace(usual, small)
    return text + "train: {epochs: 1, batch_size: 4}\n"


def save_segformer(folder: Path) -> None:
    """A folder as it is downloaded: of other classes than ours, tiny, and with random weights."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation  # noqa: PLC0415 -- takes seconds

    settings = {
        "hidden_sizes": [8, 16, 32, 64], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 4, 8], "decoder_hidden_size": 32,
    }  # fmt: skip
    SegformerForSemanticSegmentation(SegformerConfig(**settings, num_labels=150)).save_pretrained(folder)
    values = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "do_normalize": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(values))


def yaml_blocks() -> Iterator[tuple[str, str]]:
    """Files that the pages show: a block of YAML whose first line is a comment with its name."""
    for page in RUNS:
        text = (ROOT / page).read_text(encoding="utf-8")
        for indent, name, body in re.findall(r"^( *)```yaml\n *# (\w+\.yaml)\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL):
            yield name, re.sub(rf"^{indent}", "", body, flags=re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("page", RUNS)
def test_the_commands_of_a_page_do_what_they_say(page: str, made: Path, tmp_path: Path) -> None:
    for name in RUNS[page]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (made / name).is_dir() else shutil.copy)(made / name, tmp_path / name)
    with contextlib.ExitStack() as servers:
        for kind, lines in blocks(Path(page)):
            for line in lines:
                if kind == "server":
                    servers.enter_context(started(line, tmp_path))
                elif kind not in ("parse", "install") and not line.startswith("pip "):
                    done = call(line, tmp_path)
                    refused = kind == "gpu" and re.search(r"error: .*(TensorRT|trt|GPU|no such|is not there).*", done.stderr)
                    verdict = kind == "verdict" and done.returncode in (1, 3)
                    assert done.returncode == 0 or refused or verdict, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


@contextlib.contextmanager
def started(line: str, where: Path) -> Iterator[None]:
    """A server that listens, until the page ends."""
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": ""}
    with subprocess.Popen(
        shlex.split(line), cwd=where, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert any(said.startswith("listening at ") for said in process.stdout), line
            yield
        finally:
            process.terminate()
            assert process.wait(60) == 0
