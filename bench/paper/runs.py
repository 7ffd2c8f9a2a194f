"""Attack results as they are averaged: found in run folders, sorted by the training of their checkpoints, and comparable."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ddcat_bench.attack.results import AttackResult
from ddcat_bench.errors import BenchError
from ddcat_bench.result_io import read_result
from ddcat_bench.result_schema import CheckpointEntry, check_same_images

__all__ = [
    "ARCHITECTURES",
    "METHODS",
    "EvaluatedRun",
    "Training",
    "check_comparable",
    "check_seeds",
    "find_results",
    "place",
    "trainings",
]

METHODS = {  # in the order of a table's lines
    "undefended": "undefended",
    "sat": "SAT",
    "ddcat-m": "DDC-AT-M",
    "ddcat-n": "DDC-AT-N",
    "ddcat": "DDC-AT",
    "pgd-at": "PGD-AT",
    "segpgd-at": "SegPGD-AT",
    "trades": "TRADES",
}
ARCHITECTURES = {"resnet50 + pyramid": "PSPNet-50", "resnet50 + aspp": "DeepLabv3-50"}  # that the paper has, in its order
_FILE = "attack.json"
_UNKNOWN = "training"  # key of a recipe that is not known


class EvaluatedRun(NamedTuple):
    """A result and the file that it is in."""

    path: Path
    result: AttackResult


class Training(NamedTuple):
    """All of a training but its seed: checkpoints that have it in common may be averaged."""

    architecture: str
    method: str
    settings: str  # what tells it from other trainings of the same architecture and method: "optim.lr 0.02"; mostly nothing

    @property
    def name(self) -> str:
        """Its name for a reader: DeepLabv3-50, SAT."""
        settings = f" ({self.settings})" if self.settings else ""
        return f"{ARCHITECTURES.get(self.architecture, self.architecture)}, {METHODS.get(self.method, self.method)}{settings}"


def find_results(runs: Sequence[Path]) -> list[EvaluatedRun]:
    """
    Read the results that arguments name.

    Parameters
    ----------
    runs : sequence of Path
        Each a result file, a folder with an attack.json in it, or a folder of such folders.

    Returns
    -------
    list of EvaluatedRun
        Each file once, however often it is named.

    Raises
    ------
    BenchError
        If one has no result, or it cannot be read.
    """
    files = dict.fromkeys(file.resolve() for run in runs for file in _files(run))
    shown = {file.resolve(): file for run in runs for file in _files(run)}
    return [EvaluatedRun(shown[file], read_result(shown[file], AttackResult)) for file in files]


def trainings(entries: Iterable[CheckpointEntry]) -> dict[str, Training]:
    """
    Sort checkpoints by their training.

    Parameters
    ----------
    entries : iterable of CheckpointEntry

    Returns
    -------
    dict of str to Training
        By the checkpoint's SHA-256; in the order of a table's lines.
    """
    known = {entry.sha256: entry for entry in entries}
    recipes = {sha256: _recipe(entry) for sha256, entry in known.items()}
    trained = {}
    for sha256, entry in known.items():
        others = [recipes[s] for s, o in known.items() if (o.architecture, o.method) == (entry.architecture, entry.method)]
        trained[sha256] = Training(entry.architecture, entry.method, _difference(recipes[sha256], others))
    return dict(sorted(trained.items(), key=lambda item: (*place(item[1].architecture, item[1].method), item[1].settings)))


def place(architecture: str, method: str) -> tuple[int, str, int, str]:
    """Return the key that sorts the lines of a table: the paper's architectures and methods come first."""
    known, methods = list(ARCHITECTURES), list(METHODS)
    return (
        known.index(architecture) if architecture in known else len(known),
        architecture,
        methods.index(method) if method in methods else len(methods),
        method,
    )


def check_comparable(evaluated: Sequence[EvaluatedRun]) -> None:
    """
    Refuse results that do not compare.

    Raises
    ------
    BenchError
        Naming the first two that were not evaluated on the same images by the same protocol.
    """
    check_same_images([(str(one.path), one.result.data) for one in evaluated])
    for other in evaluated[1:]:
        first = evaluated[0]
        if first.result.protocol_name != other.result.protocol_name:
            raise BenchError(
                f"{first.path} and {other.path} were evaluated with different protocols ({first.result.protocol_name}, "
                f"{other.result.protocol_name}): use results of one protocol"
            )


def check_seeds(evaluated: Sequence[EvaluatedRun]) -> None:
    """
    Refuse two checkpoints of one training and one seed: a run's best and its last, say.

    Parameters
    ----------
    evaluated : sequence of EvaluatedRun
        Of the checkpoints of one training.

    Raises
    ------
    BenchError
        Naming the two.
    """
    seen: dict[int, EvaluatedRun] = {}
    for one in evaluated:
        seed = one.result.checkpoint.seed
        other = seen.setdefault(seed, one) if seed is not None else one
        if other.result.checkpoint.sha256 != one.result.checkpoint.sha256:
            raise BenchError(
                f"{other.path} and {one.path} are of two checkpoints of the same training and seed {seed} "
                f"({other.result.checkpoint.path}, {one.result.checkpoint.path}): use one checkpoint of each seed"
            )


def _files(run: Path) -> list[Path]:
    if run.is_file():
        return [run]
    files = [run / _FILE] if (run / _FILE).is_file() else sorted(run.glob(f"*/{_FILE}"))
    if not files:
        raise BenchError(f"{run}: no {_FILE} in it, nor in a folder in it; `ddcat attack CHECKPOINT` writes one")
    return files


def _recipe(entry: CheckpointEntry) -> dict[str, str]:
    if entry.training is None:  # imported or older: what little is known
        return {_UNKNOWN: "not recorded", "step": str(entry.step), **_flat({"attack": entry.attack or {}})}
    return _flat(entry.training)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    leaves: dict[str, str] = {}
    for key, value in tree.items():
        leaves |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": str(value)}
    return leaves


def _difference(recipe: Mapping[str, str], others: Sequence[Mapping[str, str]]) -> str:
    comparable = [other for other in others if (_UNKNOWN in other) == (_UNKNOWN in recipe)]
    mixed = [_UNKNOWN] if _UNKNOWN in recipe and len(comparable) < len(others) else []
    keys = sorted({key for other in comparable for key in recipe.keys() | other.keys() if other.get(key) != recipe.get(key)})
    return ", ".join(f"{key} {recipe.get(key, 'none')}" for key in (*mixed, *keys))
