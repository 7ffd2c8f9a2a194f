"""The end of a real server process whose engines are at work: HTTP, gRPC and all models share one drain."""

import contextlib
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from ddcat.bundle import Bundle
from tests.serve.payloads import as_labels, as_png, refused
from tests.serve.processes import free_port, held_engines, holding, server, wait_for

WHITE = np.full((37, 53, 3), 255, np.uint8)
IS_WHITE = "images.min() == 255"


def ask_http(address: str, model: str, picture: np.ndarray) -> httpx.Response:
    return httpx.post(f"{address}/v1/segment?model={model}", content=as_png(picture), timeout=60)


def ask_grpc(address: str, model: str, picture: np.ndarray) -> np.ndarray:
    with triton.InferenceServerClient(address) as client:
        image = triton.InferInput("image", [1, *picture.shape], "UINT8")
        image.set_data_from_numpy(picture[None])
        labels: np.ndarray = client.infer(model, [image]).as_numpy("labels")[0]
        return labels


def wait_until_all_work(address: str, calls: list["Future[Any]"]) -> None:
    """Each engine has one white image in hand, and another one waits."""
    waiting = [f'ddcat_waiting_pixels{{model="{name}",version="1"}} {WHITE[..., 0].size}.0\n' for name in ("one", "two")]
    while not all(line in httpx.get(f"{address}/metrics").text for line in waiting):
        assert not any(call.done() for call in calls)
        time.sleep(0.05)


class Busy(NamedTuple):
    """A server with two models, each of which has a white image by HTTP and another one by gRPC."""

    process: "subprocess.Popen[str]"
    grpc: str  # its address
    by_http: list["Future[httpx.Response]"]
    by_grpc: list["Future[np.ndarray]"]
    pool: ThreadPoolExecutor

    def log(self) -> str:
        log: Any = self.process.stderr
        log.seek(0)
        return str(log.read())


@contextlib.contextmanager
def busy_server(make_bundle: Callable[..., Bundle], *, grace: float, drain: float, until: Path) -> Iterator[Busy]:
    grpc = f"127.0.0.1:{(port := free_port())}"
    options = ("--grpc-port", port, "--shutdown-delay", grace, "--drain-timeout", drain, "--timeout", 60)
    bundles = [make_bundle(name).path for name in ("one", "two")]
    with (
        ThreadPoolExecutor(8) as pool,
        server(*bundles, *options, before=holding(IS_WHITE, until=until)) as (process, address),
    ):
        by_http = [pool.submit(ask_http, address, name, WHITE) for name in ("one", "two")]
        wait_for(lambda: held_engines(until) == len(bundles))  # or one call might take both images
        by_grpc = [pool.submit(ask_grpc, grpc, name, WHITE) for name in ("one", "two")]
        wait_until_all_work(address, [*by_http, *by_grpc])
        yield Busy(process, grpc, by_http, by_grpc, pool)


def status_of(call: "Future[np.ndarray]") -> str:
    with pytest.raises(InferenceServerException) as caught:
        call.result(30)
    return str(caught.value.status())


def test_what_does_not_end_is_given_up_after_one_drain_and_not_after_several(
    make_bundle: Callable[..., Bundle], tmp_path: Path
) -> None:
    drain = 3
    with busy_server(make_bundle, grace=0.2, drain=drain, until=tmp_path / "never") as busy:
        busy.process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        time.sleep(1)  # the grace is over
        assert status_of(busy.pool.submit(ask_grpc, busy.grpc, "one", WHITE)) == "StatusCode.UNAVAILABLE"
        assert not any(call.done() for call in (*busy.by_http, *busy.by_grpc))
        busy.process.wait(30)
        assert drain <= time.monotonic() - began < 3 * drain  # two models, HTTP and gRPC one after the other: four drains
        for call in busy.by_http:
            assert refused(call.result(30)) == (503, "the server is stopping: use another one")
        assert all(call.exception(30) is not None for call in busy.by_grpc)
        assert "Traceback" not in busy.log(), busy.log()


def test_what_ends_within_the_drain_is_answered_by_http_and_grpc(
    make_bundle: Callable[..., Bundle], oracle: Callable, tmp_path: Path
) -> None:
    with busy_server(make_bundle, grace=0.1, drain=60, until=tmp_path / "go") as busy:
        busy.process.send_signal(signal.SIGTERM)
        (tmp_path / "go").touch()
        assert busy.process.wait(30) == 0
        masks = [as_labels(call.result(30).content) for call in busy.by_http]
        for labels in (*masks, *(call.result(30) for call in busy.by_grpc)):
            np.testing.assert_array_equal(labels, oracle(WHITE[None])[0][0])


def test_a_second_signal_ends_it_at_once_where_nobody_waits_any_more_but_an_engine_works(
    make_bundle: Callable[..., Bundle], tmp_path: Path
) -> None:
    options = ("--shutdown-delay", 0.1, "--drain-timeout", 600, "--timeout", 60)
    with server(make_bundle("one").path, *options, before=holding(IS_WHITE, until=tmp_path / "never")) as (process, address):
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{address}/v1/segment", content=as_png(WHITE), timeout=1)
        process.send_signal(signal.SIGTERM)
        time.sleep(1)  # HTTP is done, and the model is being closed
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


BUSY = """
import time
from ddcat.engines.base import CheckedEngine
from ddcat.engines.onnxruntime import OrtGraph
infer = CheckedEngine.infer
def hangs(engine, images):
    while images.min() == 255 and isinstance(engine._graph, OrtGraph):
        engine._graph.run(images.repeat(40, 1).repeat(40, 2))  # the runtime's own threads compute, as those of a real hang do
    return infer(engine, images)
CheckedEngine.infer = hangs
"""


@pytest.mark.parametrize("signals", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_it_ends_with_status_0_though_an_engine_that_was_given_up_computes(
    make_bundle: Callable[..., Bundle], signals: int
) -> None:
    options = ("--shutdown-delay", 0, "--drain-timeout", 2, "--engine-timeout", 0.5 if signals == 1 else 60)
    with server(make_bundle("one").path, *options, before=BUSY) as (process, address):
        if signals == 1:
            assert ask_http(address, "one", WHITE).status_code == 503
        else:
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{address}/v1/segment", content=as_png(WHITE), timeout=1)
        for _ in range(signals):
            process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
        assert process.wait(30) == 0
