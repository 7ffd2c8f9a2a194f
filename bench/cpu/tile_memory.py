"""
The peak memory of `ddcat predict` over the size of a GeoTIFF that is cut into tiles.

    python bench/cpu/tile_memory.py BUNDLE [--sides 1000 4000 16000] [--out FILE.json] [--plot FILE.png]

The bundle must have a rule for tiles. Each scene is a square that is written for it, and removed afterwards; each is segmented
by a process of its own, whose largest resident memory is what the system noted.
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


def write_scene(path: Path, side: int) -> None:
    """Write a square of coloured stripes, a band of rows at a time."""
    about = {"height": side, "width": side, "count": 3, "dtype": "uint8", "compress": "deflate", "tiled": True}
    rng = np.random.default_rng(0)
    with rasterio.open(path, "w", driver="GTiff", BIGTIFF="IF_SAFER", **about) as file:
        for top in range(0, side, 256):
            rows = min(256, side - top)
            stripes = rng.integers(0, 256, (3, 1, -(-side // 64)), np.uint8).repeat(64, 2)[:, :, :side]
            file.write(np.broadcast_to(stripes, (3, rows, side)), window=((top, top + rows), (0, side)))


def measure(bundle: Path, side: int) -> dict[str, float]:
    """Segment a scene; return its side, the peak memory in MiB and the seconds it took."""
    with tempfile.TemporaryDirectory() as folder:
        write_scene(Path(folder) / "scene.tif", side)
        line = [sys.executable, "-m", "ddcat", "predict", str(bundle), f"{folder}/scene.tif", "--out", f"{folder}/out"]
        started = time.perf_counter()
        process = subprocess.Popen([*line, "--format", "png"], stdout=subprocess.DEVNULL)
        _, status, used = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"{' '.join(line)} ended with {os.waitstatus_to_exitcode(status)}")
        return {"side": side, "peak_mib": round(used.ru_maxrss / 1024, 1), "seconds": round(time.perf_counter() - started, 1)}


def main() -> None:
    """Measure each size, and print, write and plot what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--sides", type=int, nargs="+", default=[1000, 4000, 16000, 30000])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    found = []
    for side in arguments.sides:
        found.append(measure(arguments.bundle, side))
        print(json.dumps(found[-1]), flush=True)
        if arguments.out is not None:
            arguments.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    if arguments.plot is not None:
        figure, axes = pyplot.subplots(figsize=(5, 3), layout="constrained")
        axes.plot([entry["side"] for entry in found], [entry["peak_mib"] for entry in found], marker="o")
        axes.set(xlabel="pixels a side", ylabel="peak memory, MiB", ylim=(0, None))
        figure.savefig(arguments.plot, dpi=150)


if __name__ == "__main__":
    main()
