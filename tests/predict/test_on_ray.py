"""Ray Data, really running here: the same bytes as from one machine."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from ddcat.bundle import Bundle
from ddcat.errors import DdcatError
from ddcat.predict.run import predict
from ddcat.predict.sources import Source, find_sources
from tests.predict.test_predict import digests, kill_and_resume, many

ray = pytest.importorskip("ray", reason="ray is not installed")
pytest.importorskip("ray.data", reason="ray[data] is not installed", exc_type=ImportError)

from ddcat.predict.on_ray import parts  # noqa: E402

pytestmark = pytest.mark.slow


@pytest.fixture
def cluster() -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100 * 2**20, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()


def test_many_workers_give_the_bytes_of_one_and_go_on_where_one_was(
    golden: Bundle, scenes: Path, cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many(scenes, 30)
    (scenes / "00-damaged.png").write_bytes(b"no image")
    monkeypatch.chdir(scenes.parent)
    options = {"formats": ["png", "coco", "geojson"], "batch": 3, "threads": 1}
    whole = predict(golden.path, find_sources(["scenes"]), tmp_path / "one", **options)
    summary = predict(golden.path, find_sources(["scenes"]), Path("many"), on_ray=True, **options)
    assert summary == whole
    assert (summary["images"], [entry["name"] for entry in summary["failed"]]) == (42, ["00-damaged.png"])
    assert digests(tmp_path / "one") == digests(tmp_path / "many")
    again = (tmp_path / "many/masks/01.png").stat().st_mtime_ns
    (scenes / "00-damaged.png").unlink()
    assert predict(golden.path, find_sources(["scenes"]), tmp_path / "many", on_ray=True, **options)["failed"] == []
    assert (tmp_path / "many/masks/01.png").stat().st_mtime_ns == again


def test_too_many_threads_and_another_engine_are_said_in_a_line(
    bundle: Bundle, scenes: Path, cluster: None, tmp_path: Path
) -> None:
    with pytest.raises(DdcatError, match=r"the machines of the cluster have at most 2 cores, expected 64: use --threads"):
        predict(bundle.path, find_sources([str(scenes)]), tmp_path / "out", on_ray=True, threads=64)


def test_a_ray_that_does_not_start_is_said_in_a_line(
    bundle: Bundle, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**options: object) -> None:
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(ray, "init", fail)
    with pytest.raises(DdcatError, match=r"Ray failed \(The current node timed out during startup\.?\): run it again, or"):
        predict(bundle.path, find_sources([str(scenes)]), tmp_path / "out", on_ray=True, threads=1)


def test_a_killed_run_goes_on_to_the_same_bytes(golden: Bundle, scenes: Path, tmp_path: Path) -> None:
    many(scenes, 120)
    assert kill_and_resume(golden.path, scenes, tmp_path / "killed", 2, "--ray", "--threads", "1", "--batch", "2") == 2
    predict(golden.path, find_sources([str(scenes)]), tmp_path / "whole", batch=2, threads=1)
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")


def batches(sources: Sequence[Source], batch: int) -> Iterator[tuple[Source, ...]]:
    """Yield what one machine computes together."""
    for _, some in itertools.groupby((s for s in sources if not s.is_scene), lambda source: source.is_video):
        while group := tuple(itertools.islice(some, batch)):
            yield group


@pytest.mark.parametrize("most", [1, 3, 100])
def test_images_keep_their_batches_in_parts(most: int) -> None:
    kinds = {7: "mp4", 12: "tif", 20: "mp4", 21: "mp4"}
    sources = [Source(f"{place:02}.{kinds.get(place, 'png')}", "") for place in range(40)]
    made = list(parts(sources, 4, most))
    assert sorted(source for part in made for source in part) == sources
    assert [len(part) for part in made if part[0].is_video or part[0].is_scene] == [1] * 4
    pictures = [part for part in made if not part[0].is_scene]
    assert [group for part in pictures for group in batches(part, 4)] == [
        group for videos in batches(sources, 4) for group in ([(one,) for one in videos] if videos[0].is_video else [videos])
    ]
