"""
The peak memory of `ddcat predict` over the size of a GeoTIFF that is cut into tiles.

    python bench/cpu/tile_memory.py BUNDLE [--sides 1000 4000 16000 30000] [--strip 2000] [--out FOLDER/NAME]

The bundle must have a rule for tiles. Each scene is a square, or with `--strip` also a strip of a fixed width and of that
height. It is written for the measurement, and removed afterwards. Each is segmented by a process of its own, whose largest
resident memory is what the system noted. `--out` writes NAME.json and the plot NAME.png.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio
from matplotlib import pyplot

from ddcat import provenance
from ddcat.bundle import NO_TRUST_POLICY, open_bundle

_SCENE_CRS = "EPSG:32633"
_METRES = 0.5  # of a pixel


def write_scene(path: Path, height: int, width: int) -> None:
    """Write coloured stripes, a band of rows at a time."""
    about = {"height": height, "width": width, "count": 3, "dtype": "uint8", "compress": "deflate", "tiled": True}
    place = {"crs": _SCENE_CRS, "transform": rasterio.transform.from_origin(500_000, 5_400_000, _METRES, _METRES)}
    rng = np.random.default_rng(0)
    with rasterio.open(path, "w", driver="GTiff", BIGTIFF="IF_SAFER", **about, **place) as file:
        for top in range(0, height, 256):
            rows = min(256, height - top)
            stripes = rng.integers(0, 256, (3, 1, -(-width // 64)), np.uint8).repeat(64, 2)[:, :, :width]
            file.write(np.broadcast_to(stripes, (3, rows, width)), window=((top, top + rows), (0, width)))


def measure(bundle: Path, height: int, width: int) -> dict[str, float]:
    """Segment a scene; return its size, the peak memory in MiB and the seconds it took."""
    with tempfile.TemporaryDirectory() as folder:
        write_scene(Path(folder) / "scene.tif", height, width)
        line = [sys.executable, "-m", "ddcat", "predict", str(bundle), f"{folder}/scene.tif", "--out", f"{folder}/out"]
        started = time.perf_counter()
        process = subprocess.Popen([*line, "--format", "png"], stdout=subprocess.DEVNULL)
        _, status, used = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"{' '.join(line)} ended with {os.waitstatus_to_exitcode(status)}")
        seconds = time.perf_counter() - started
        with rasterio.open(f"{folder}/out/masks/scene.tif") as mask:
            if (mask.height, mask.width, mask.crs) != (height, width, rasterio.CRS.from_string(_SCENE_CRS)):
                raise SystemExit(
                    f"the mask is {mask.height}x{mask.width} in {mask.crs}, expected {height}x{width} in {_SCENE_CRS}"
                )
    return {
        "height": height,
        "width": width,
        "peak_mib": round(used.ru_maxrss / 1024, 1),
        "seconds": round(seconds, 1),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
    }


def draw(file: Path, squares: list[dict[str, float]], strips: list[dict[str, float]]) -> None:
    """Plot the peak memory over the height of the scenes."""
    figure, axes = pyplot.subplots(figsize=(5.5, 3.2), layout="constrained")
    for scenes, label in ((squares, "square"), (strips, f"{strips[0]['width']:,} pixels wide" if strips else "")):
        if scenes:
            axes.plot([scene["height"] for scene in scenes], [scene["peak_mib"] for scene in scenes], marker="o", label=label)
    pixels = np.linspace(0, max(scene["height"] for scene in squares), 200)
    axes.plot(pixels, 3 * pixels**2 / 2**20, linestyle=":", color="grey", label="the pixels of a square alone")
    highest = max(scene["peak_mib"] for scene in squares + strips)
    axes.set(xlabel="height of the scene, pixels", ylabel="peak memory, MiB", ylim=(0, 1.5 * highest))
    axes.legend(loc="lower right")
    figure.savefig(file, dpi=150)


def main() -> None:
    """Measure each size, and print, write and plot what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--sides", type=int, nargs="+", default=[1000, 4000, 16000, 30000])
    parser.add_argument("--strip", type=int, help="the width of strips, in pixels")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    manifest = open_bundle(arguments.bundle, NO_TRUST_POLICY).manifest
    found: dict[str, list[dict[str, float]]] = {"squares": [], "strips": []}
    for side in arguments.sides:
        for kind, width in (("squares", side), ("strips", arguments.strip)):
            if width is not None:
                found[kind].append(measure(arguments.bundle, side, width))
                print(json.dumps(found[kind][-1]), flush=True)
    if arguments.out is not None:
        tiles = manifest.preprocessing.tiles
        about = {
            "bundle": manifest.name,
            "classes": len(manifest.classes),
            "tiles": None if tiles is None else {"side": tiles.side, "overlap": tiles.overlap},
            "machine": provenance.machine(),
            "versions": provenance.versions(("numpy", "onnxruntime", "rasterio")),
            "git_commit": provenance.git_commit(),
        }
        text = json.dumps(about | found, indent=2)
        arguments.out.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
        draw(arguments.out.with_suffix(".png"), **found)


if __name__ == "__main__":
    main()
