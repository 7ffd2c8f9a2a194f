"""A model of the zoo is the published one, byte for byte, or it is refused and nothing is left."""

import http.server
import io
import threading
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from ddcat.bundle import write_bundle
from ddcat.errors import DdcatError
from ddcat.hashing import sha256_of_bytes
from ddcat.manifest import Manifest
from ddcat.zoo import cli
from ddcat.zoo import fetch as fetching
from ddcat.zoo.fetch import default_source, fetch, verify
from ddcat.zoo.index import Entry, Index, StoredFile, entry_of, read_index
from tests.commands import call

ROOT = Path(__file__).parents[2]


def zipped(files: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return content.getvalue()


def stored(folder: Path, name: str, content: bytes) -> StoredFile:
    (folder / name).write_bytes(content)
    return StoredFile(name=name, bytes=len(content), sha256=sha256_of_bytes(content))


@pytest.fixture
def zoo(tmp_path: Path, make_manifest: Callable[..., Manifest], files: dict[str, bytes]) -> tuple[Entry, Path]:
    bundle = write_bundle(tmp_path / "made", make_manifest(), files)
    folder = tmp_path / "zoo"
    folder.mkdir()
    entry = Entry(
        name="small", network="a network", data="scenes", method="undefended", size="8x8",
        checkpoint=stored(folder, "small.safetensors", b"weights"),
        bundle=stored(folder, "small-int8.zip", zipped({path.name: path.read_bytes() for path in bundle.path.iterdir()})),
        digest=bundle.digest, figures={"clean": 0.5}, trained="ddcat train", licence="MIT",
    )  # fmt: skip
    return entry, folder


@pytest.fixture
def url(zoo: tuple[Entry, Path]) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(zoo[1])))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_what_is_fetched_from_a_folder_or_a_url_is_what_was_published(
    zoo: tuple[Entry, Path], url: str, tmp_path: Path
) -> None:
    entry, folder = zoo
    for place, source in enumerate((str(folder), url, f"{url}/")):
        out, read = tmp_path / f"out{place}", list[int]()
        fetch(entry, out, source, advance=read.append)
        verify(entry, out)
        assert sum(read) == entry.checkpoint.bytes + entry.bundle.bytes
        assert (out / "model.safetensors").read_bytes() == b"weights"
        assert sorted(path.name for path in (out / "bundle").iterdir()) == sorted(
            path.name for path in (tmp_path / "made").iterdir()
        )


def test_the_commands_list_fetch_and_verify(zoo: tuple[Entry, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry, folder = zoo
    out = tmp_path / "out"
    monkeypatch.setattr(cli, "read_index", lambda: Index(schema_version=1, models=(entry,)))
    for words, expected in (
        (["list"], "small  (0 MB)\n  a network, undefended, scenes at 8x8\n  mIoU: clean 0.500\n"),
        (["fetch", "small", "--out", out, "--from", folder], f"next: ddcat serve {out}/bundle --demo"),
        (["verify", "small", out], f"{out} is small, byte for byte"),
    ):
        done = call("ddcat", "zoo", *words)
        assert done.returncode == 0, done.stderr
        assert expected in done.stdout


@pytest.mark.parametrize("file", ["small.safetensors", "small-int8.zip"])
@pytest.mark.parametrize("over", ["folder", "url"])
@pytest.mark.parametrize("change", ["a byte", "longer", "empty", "absent"])
def test_a_tampered_file_is_refused_and_nothing_is_left(
    zoo: tuple[Entry, Path], url: str, tmp_path: Path, file: str, over: str, change: str
) -> None:
    entry, folder = zoo
    path = folder / file
    content = path.read_bytes()
    if change == "absent":
        path.unlink()
    else:
        path.write_bytes({"a byte": content[:-1] + bytes([content[-1] ^ 1]), "longer": content * 40, "empty": b""}[change])
    before = set(tmp_path.iterdir())
    with pytest.raises(DdcatError, match=file) as refused:
        fetch(entry, tmp_path / "out", str(folder) if over == "folder" else url)
    assert "\n" not in str(refused.value)
    assert set(tmp_path.iterdir()) == before


def test_an_endless_answer_is_not_read_to_its_end(zoo: tuple[Entry, Path], url: str, tmp_path: Path) -> None:
    entry, folder = zoo
    (folder / "small.safetensors").write_bytes(b"x" * 2**24)
    read = list[int]()
    with pytest.raises(DdcatError, match="is not the file"):
        fetch(entry, tmp_path / "out", url, advance=read.append)
    assert sum(read) <= 2 * fetching._PART


def test_a_fetched_folder_that_was_changed_is_told(zoo: tuple[Entry, Path], tmp_path: Path) -> None:
    entry, folder = zoo
    out = tmp_path / "out"
    fetch(entry, out, str(folder))
    (out / "model.safetensors").write_bytes(b"weightz")
    with pytest.raises(DdcatError, match=r"model\.safetensors is not the file of the zoo"):
        verify(entry, out)
    (out / "model.safetensors").write_bytes(b"weights")
    (out / "bundle" / "manifest.json").write_bytes((out / "bundle" / "manifest.json").read_bytes() + b" ")
    with pytest.raises(DdcatError, match="do not run it"):
        verify(entry, out)


def test_an_archive_leads_nowhere_else(zoo: tuple[Entry, Path], tmp_path: Path) -> None:
    entry, folder = zoo
    outside = entry.model_copy(update={"bundle": stored(folder, "outside.zip", zipped({"../outside": b"x"}))})
    with pytest.raises(DdcatError, match="not a ZIP file of a bundle"):
        fetch(outside, tmp_path / "out", str(folder))
    assert not (tmp_path / "outside").exists()


def test_where_nothing_lies_the_message_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fetching, "__file__", str(tmp_path / "a" / "b" / "c.py"))
    with pytest.raises(DdcatError, match="--from FOLDER or --from URL"):
        default_source()
    with pytest.raises(DdcatError, match="expected one of"):
        entry_of("nothing", read_index())


def test_the_models_of_this_repository_are_those_of_the_index(tmp_path: Path) -> None:
    index = read_index()
    listed = {file.name for entry in index.models for file in (entry.checkpoint, entry.bundle)}
    assert {path.name for path in (ROOT / "zoo").iterdir() if path.suffix in (".safetensors", ".zip")} == listed
    for entry in index.models:
        assert max(entry.checkpoint.bytes, entry.bundle.bytes) <= 16 * 2**20
        fetch(entry, tmp_path / entry.name, str(ROOT / "zoo"))
