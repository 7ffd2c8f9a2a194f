"""
Configuration files: YAML that may inherit from presets and from other files, and overrides of single values.

Files come from others: whatever they hold, reading them takes neither long nor much memory. Nothing here knows which keys there
are.
"""

import copy
import difflib
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from ddcat.yaml_text import parse_yaml
from ddcat_train.errors import ConfigError

__all__ = ["CONFIG", "PRESETS", "load_tree", "named", "presets", "shortened"]

CONFIG = "config.yaml"  # of a run, resolved
PRESETS = Path(__file__).parent / "presets"  # the parts of which presets are composed, and others to inherit from

_METHODS = ("undefended", "sat", "ddcat", "ddcat-m", "ddcat-n")
_NETWORKS = ("deeplabv3_50", "pspnet50")
# The parts of each preset: data set, network (where the data set's part has none), method
_PARTS: tuple[tuple[str, ...], ...] = (
    *product(("camvid", "scenes"), (*_METHODS, "sat-fgsm", "pgd-at", "pgd-at-4", "segpgd-at", "trades", "gaussian")),
    *product(("camvid", "scenes"), ("undefended", "pgd-at"), ("corruptions",)),
    *product(
        ("camvid",),
        ("efficientnet_lite2", "segformer_b0", "upernet_convnext_tiny"),
        ("undefended", "sat", "ddcat", "pgd-at", "pgd-at-4"),
    ),
    ("voc", "upernet_convnext_tiny", "pir-at"),
    *product(("cityscapes", "voc"), _NETWORKS, (*_METHODS, "sat-fgsm", "pgd-at-c24")),
    *product(("cityscapes-semseg",), _NETWORKS, (*_METHODS, "pgd-at-c24")),
)
_COMPOSED = {"-".join(parts).removesuffix("-c24"): parts for parts in _PARTS}
_LARGEST = 2**20  # bytes of a file
_DEEPEST = 50  # files, one inheriting from the next

_repr = reprlib.Repr()
_repr.maxlevel, _repr.maxlist, _repr.maxdict, _repr.maxtuple = 2, 3, 3, 3
_repr.maxstring = _repr.maxother = _repr.maxlong = 100


def shortened(value: Any) -> str:
    """Return a value as an error message shows it, however large it is."""
    return _repr.repr(value)


def named(text: str) -> str:
    """Return a name, shortened where it would bury the message."""
    return text if len(text) <= 100 else shortened(text)


def presets() -> list[str]:
    """Return the names of the configurations that come with ddcat."""
    return sorted(_COMPOSED)


def load_tree(source: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """
    Read a preset or a file with all that it inherits, and apply overrides. Raises `ConfigError`.

    Parameters
    ----------
    source : str
        The name of a preset, or the path of a YAML file.
    overrides : sequence of str
        Such as ``optim.lr=0.02``; the value is read as YAML.
    """
    tree: dict[str, Any] = {}
    _inherit(tree, _locate(source, Path()), {}, ())
    for override in overrides:
        _override(tree, override)
    return tree


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long for one
        return False


def _locate(source: str, folder: Path) -> list[Path]:
    """Return the files of a name: one, or the parts of a preset."""
    if _is_file(folder / source):
        return [folder / source]
    if source.endswith(("-clean", "_clean")):  # as older versions called it
        source = f"{source.removesuffix('clean')}undefended"
    if source in _COMPOSED:
        return [PRESETS / f"_{part}.yaml" for part in _COMPOSED[source]]
    if _is_file(part := PRESETS / f"{source}.yaml"):
        return [part]
    if _is_file(folder / source / CONFIG):
        raise ConfigError(f"{source} is a run: use its {Path(source) / CONFIG}, with --resume to continue it")
    stem = source.removesuffix(".yaml").removesuffix(".yml")
    files = [f"{stem}{suffix}" for suffix in (".yaml", ".yml") if _is_file(folder / f"{stem}{suffix}")]
    nearest = files or difflib.get_close_matches(source[:100], presets(), n=3)
    hint = f"did you mean {' or '.join(nearest)}? " if nearest else ""
    raise ConfigError(f"{named(source)} is neither a file nor a preset: {hint}'ddcat train --list' names all presets")


def _inherit(
    tree: dict[str, Any], paths: Iterable[Path], done: dict[Path, dict[str, Any]], inherited: tuple[Path, ...]
) -> None:
    for path in paths:
        _merge(tree, _read(path, done, inherited))


def _read(path: Path, done: dict[Path, dict[str, Any]], inherited: tuple[Path, ...]) -> dict[str, Any]:
    """Return a file's values over those that it inherits. A file that several inherit is read once."""
    place = path.resolve()
    if place in inherited:
        raise ConfigError(f"{path} inherits from itself")
    if len(inherited) > _DEEPEST:
        raise ConfigError(f"{inherited[0]} inherits through more than {_DEEPEST} files")
    if place in done:
        return done[place]
    try:
        if path.stat().st_size > _LARGEST:
            raise ValueError(f"more than {_LARGEST} bytes")
        tree = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as cause:
        raise ConfigError(f"{path} is not readable YAML: {cause}") from cause
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} holds no table of keys and values")
    parents = tree.pop("inherits", [])
    names = [parents] if isinstance(parents, str) else parents
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{path}: inherits names a preset or a file, or a list of them")
    merged: dict[str, Any] = {}
    for parent in names:
        try:
            files = _locate(parent, path.parent)
        except ConfigError as cause:
            raise ConfigError(f"{path}: inherits: {cause}") from cause
        _inherit(merged, files, done, (*inherited, place))
    _merge(merged, tree)
    done[place] = merged
    return merged


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> None:
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            base[key] = copy.deepcopy(value)  # what one file says is not to change with what another adds to it


def _override(tree: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    shown = named(override)
    if not equals or not all(key.split(".")):
        raise ConfigError(f"--set {shown}: write KEY=VALUE, for example optim.lr=0.02")
    *path, last = key.split(".")
    for part in path:
        tree = tree.setdefault(part, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"--set {shown}: {part} is a value, it has no keys")
    try:
        tree[last] = parse_yaml(value)
    except ValueError as cause:
        raise ConfigError(f"--set {shown}: the value is not YAML: {cause}") from cause
