"""Buckets: a store in memory; in slow tests moto's S3 on loopback, which answers as Amazon's does."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from ddcat.bundle import Bundle
from ddcat.errors import DdcatError
from ddcat.predict.run import predict
from ddcat.predict.sources import find_sources
from tests.predict.test_predict import digests, kill_and_resume, many


class Store(MemoryFileSystem):
    """Objects in this process, in the place of S3."""

    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]


@pytest.fixture
def shelf(scenes: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The scenes in memory: `s3://shelf/day`."""
    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda address: (Store(), address.removeprefix("s3:/")))
    monkeypatch.setattr(Store, "store", {})
    for path in scenes.rglob("*.png"):
        Store().pipe_file(f"/shelf/day/{path.relative_to(scenes).as_posix()}", path.read_bytes())
    return "s3://shelf/day"


def test_objects_have_the_masks_of_files(bundle: Bundle, scenes: Path, shelf: str, tmp_path: Path) -> None:
    names = [source.name for source in find_sources([str(scenes)])]
    assert [source.name for source in find_sources([shelf])] == names
    assert [source.name for source in find_sources([f"{shelf}/0*.png"])] == [name for name in names if name.startswith("0")]
    assert [source.name for source in find_sources([f"{shelf}/{names[0]}"])] == [names[0]]
    predict(bundle.path, find_sources([shelf]), tmp_path / "objects")
    predict(bundle.path, find_sources([str(scenes)]), tmp_path / "files")
    assert digests(tmp_path / "objects/masks") == digests(tmp_path / "files/masks")


def test_what_a_store_refuses_is_one_line(bundle: Bundle, shelf: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DdcatError, match=r"^no such object or folder: s3://shelf/night$"):
        find_sources(["s3://shelf/night"])
    sources = find_sources([shelf])
    Store().rm(f"/shelf/day/{sources[0].name}")
    summary = predict(bundle.path, sources, tmp_path / "out")
    assert (summary["images"], [entry["name"] for entry in summary["failed"]]) == (len(sources) - 1, [sources[0].name])
    assert summary["failed"][0]["reason"].startswith("it cannot be read: ")
    monkeypatch.setattr(Store, "isdir", refuse)
    with pytest.raises(DdcatError, match=r"^s3://shelf/day cannot be listed: the key has no rights$"):
        find_sources([shelf])
    monkeypatch.setattr(fsspec.core, "url_to_fs", refuse)
    with pytest.raises(DdcatError, match=r"^s3://shelf/day cannot be opened: the key has no rights$"):
        find_sources([shelf])


def refuse(*given: object, **options: object) -> None:
    raise PermissionError("the key has no rights\nand more")


@pytest.fixture
def bucket(scenes: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The scenes in a bucket: `s3://photos/day`."""
    s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed")
    moto = pytest.importorskip("moto.server", reason="moto is not installed")
    boto3 = pytest.importorskip("boto3", reason="boto3 is not installed")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for name, value in (
            ("AWS_ENDPOINT_URL", f"http://{host}:{port}"), ("AWS_ACCESS_KEY_ID", "x"), ("AWS_SECRET_ACCESS_KEY", "x"),
            ("AWS_DEFAULT_REGION", "us-east-1"),
        ):  # fmt: skip
            monkeypatch.setenv(name, value)
        store = boto3.client("s3")
        store.create_bucket(Bucket="photos")
        many(scenes, 60)
        for path in scenes.rglob("*.png"):
            store.upload_file(str(path), "photos", f"day/{path.relative_to(scenes).as_posix()}")
        yield "s3://photos/day"
    finally:
        server.stop()
        s3fs.S3FileSystem.clear_instance_cache()  # the next server has another port


@pytest.mark.slow
def test_a_bucket_killed_ten_times_gives_the_bytes_of_the_folder(
    golden: Bundle, scenes: Path, bucket: str, tmp_path: Path
) -> None:
    names = [source.name for source in find_sources([bucket])]
    assert names == [source.name for source in find_sources([str(scenes)])]
    assert [source.name for source in find_sources([f"{bucket}/0*.png"])] == [name for name in names if name.startswith("0")]
    assert kill_and_resume(golden.path, bucket, tmp_path / "killed", 10) == 10
    predict(golden.path, find_sources([bucket]), tmp_path / "whole")
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")
    predict(golden.path, find_sources([str(scenes)]), tmp_path / "folder")
    found = digests(tmp_path / "killed")
    assert [*found] == [*digests(tmp_path / "folder")]
    for name, digest in digests(tmp_path / "folder").items():
        assert digest == found[name] or name.startswith("records/")  # files and objects have other stamps


@pytest.mark.slow
def test_an_object_that_changed_is_done_again(bundle: Bundle, scenes: Path, bucket: str, tmp_path: Path) -> None:
    before = {source.name: source.stamp for source in find_sources([bucket])}
    predict(bundle.path, find_sources([bucket]), tmp_path / "out")
    content = (scenes / "more-001.png").read_bytes()
    boto3 = pytest.importorskip("boto3", reason="boto3 is not installed")
    boto3.client("s3").put_object(Bucket="photos", Key="day/more-000.png", Body=content)
    after = {source.name: source.stamp for source in find_sources([bucket])}
    assert {name for name in before if before[name] != after[name]} == {"more-000.png"}
    assert find_sources([f"{bucket}/more-000.png"])[0].stamp == after["more-000.png"]
    assert find_sources([f"{bucket}/more-00*.png"])[0].stamp == after["more-000.png"]
    predict(bundle.path, find_sources([bucket]), tmp_path / "out")
    changed, same = ((tmp_path / f"out/masks/more-{place}.png").read_bytes() for place in ("000", "001"))
    assert changed == same
