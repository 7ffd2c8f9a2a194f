import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ddcat.bundle import Bundle, open_bundle
from ddcat.classes import Classes
from ddcat.manifest import Sizes
from ddcat_export import exporting, sources
from ddcat_export.onnx_export import build_graph
from ddcat_export.parity import Parity
from ddcat_train.checkpoints import Description, SplitEntry, build_network, save_checkpoint
from ddcat_train.config import parse_config
from ddcat_train.data.synthetic.generate import write_scenes
from ddcat_train.networks import Segmenter, Stages
from ddcat_train.networks.composed import ComposedFeatures
from ddcat_train.networks.contexts import Context, ContextConv2d, PyramidPooling
from tests.commands import call
from tests.export.onnx_files import spread

CLASSES = Classes.with_voc_palette(("ground", "red thing", "tree", "sky", "thin thing", "far thing"))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def calibrate(network: Segmenter) -> None:
    """Let batch norms see images, and the last layer spread its logits, so that random weights give labels that vary."""
    network.train()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _ in range(20):
            coarse = torch.rand(4, 3, 8, 8, generator=generator)
            smooth = nn.functional.interpolate(coarse, size=(64, 64), mode="bilinear")
            network(smooth, list(network.heads))
    network.eval()
    spread(network, network.heads["main"][4], torch.cat([smooth, torch.rand(4, 3, 64, 64, generator=generator)]))


@pytest.fixture(scope="session")
def make_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    def make(name: str, *, method: str, backbone: str = "resnet10", context: str = "pyramid", stride: int = 8) -> Path:
        config = parse_config(
            {
                "data": {"name": "scenes", "root": "some/where", "val_split": "val", "long_side": 64, "val_long_side": 96},
                "augment": {"crop": 64},
                "model": {
                    "backbone": backbone,
                    "context": context,
                    "output_stride": stride,
                    **({"width": 8} if backbone == "resnet10" else {}),
                },
                "method": {"name": method, "deep_weight": 0 if method == "undefended" else 0.4},  # at 0: the main head alone
                "train": {"epochs": 1},
            },
            name,
        )
        torch.manual_seed(0)
        network = build_network(config, len(CLASSES))
        calibrate(network)
        split = SplitEntry(images=7, list_sha256="ab" * 32)
        description = Description(
            config=config, classes=CLASSES, train=split, val=split, step=12, steps=20, scores={}, best=None, git_commit=None,
            versions={},
        )  # fmt: skip
        run = tmp_path_factory.mktemp("runs") / name
        save_checkpoint(run / "best.safetensors", description, network)
        return run

    return make


@pytest.fixture(scope="session")
def run(make_run: Callable[..., Path]) -> Path:
    """A run directory with the checkpoint of a small DDC-AT network, all its heads in it."""
    return make_run("my run", method="ddcat", context="aspp")  # it exports in a third of the time of a pyramid


@pytest.fixture(scope="session")
def printed(run: Path) -> str:
    """What the command prints as it exports `run` for images of any size, with logits."""
    result = call("ddcat", "export", run, "--engine", "ort", "--logits")
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


@pytest.fixture(scope="session")
def bundle(run: Path, printed: str) -> Bundle:
    """The bundle that it left; no test changes it."""
    return open_bundle(run / "bundle-ort-fp32")


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data that `run` might have been trained on."""
    folder = tmp_path_factory.mktemp("data") / "scenes"
    write_scenes(folder, train=8, val=6, size=(60, 48))
    return folder


@pytest.fixture(scope="session")
def skip_what_is_slow(bundle: Bundle) -> Callable[[pytest.MonkeyPatch], None]:
    """Let an export of `run` take the slow stages from `bundle`, where they are done."""

    def skip(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(sources, "build_graph", lambda *given, **options: bundle.files["model.onnx"])
        patch.setattr(sources, "prove_main_branch", lambda *given, **options: bundle.manifest.main_branch_only)
        patch.setattr(exporting, "check_parity", lambda *given, **options: Parity((), 0, 0, 0.0))

    return skip


@pytest.fixture(scope="module")
def quick(skip_what_is_slow: Callable[[pytest.MonkeyPatch], None]) -> Iterator[pytest.MonkeyPatch]:
    """The slow stages of an export of `run`, already done."""
    with pytest.MonkeyPatch.context() as patch:
        skip_what_is_slow(patch)
        yield patch


class Smallest(Segmenter):
    """What export asks of a segmenter, in one convolution a head: it exports in a moment."""

    def __init__(self, context: nn.Module | None = None, channels: int = 3) -> None:
        super().__init__()
        self.classes = 4
        torch.manual_seed(0)
        self.context = context or nn.Identity()
        convolution = ContextConv2d if context else nn.Conv2d
        self.heads = nn.ModuleDict({name: convolution(channels, 4, 1) for name in ("main", "auxiliary")})

    def features(self, images: Tensor) -> ComposedFeatures:
        return ComposedFeatures(images, self.context(images[..., ::2, ::2]), (images.shape[2], images.shape[3]))

    def low_resolution_logits(self, head: str, features: ComposedFeatures) -> Tensor:
        logits: Tensor = self.heads[head](features.context)
        return logits

    def enlarge(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        return nn.functional.interpolate(logits, size=size, mode="bilinear", align_corners=True)

    def shared(self) -> tuple[nn.Parameter, ...]:
        return tuple(self.context.parameters())


@pytest.fixture(scope="session")
def smallest_once() -> Smallest:
    """The same as `smallest`; no test changes it."""
    return Smallest().eval()


@pytest.fixture(scope="session")
def graph_of(smallest_once: Smallest) -> Callable[..., bytes]:
    """Give graphs of `smallest`, each exported once."""

    @functools.cache
    def exported(sizes: Sizes | None, logits: bool, confidence: bool) -> bytes:
        return build_graph(smallest_once, sizes=sizes, logits=logits, confidence=confidence)

    return lambda sizes=((64, 80),), logits=True, confidence=False: exported(sizes, logits, confidence)


@pytest.fixture
def smallest() -> Smallest:
    return Smallest().eval()


class OneLevel(PyramidPooling):
    bins = (3,)  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__(4)
        self.widen = nn.Conv2d(3, 4, 1)

    def forward(self, maps: Tensor) -> Context:  # type: ignore[override]
        widened = self.widen(maps)
        return super().forward(Stages(widened, widened))


def with_pyramid() -> Smallest:
    torch.manual_seed(0)
    return Smallest(OneLevel(), 8).eval()


@pytest.fixture
def smallest_with_pyramid() -> Smallest:
    return with_pyramid()


@pytest.fixture(scope="session")
def pyramid_graph() -> bytes:
    """The graph of `smallest_with_pyramid` for images of any size, with logits."""
    return build_graph(with_pyramid(), sizes=None, logits=True, confidence=False)
