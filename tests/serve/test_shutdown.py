"""The end of a real server process whose engines are at work: HTTP, gRPC and all models share one drain."""

import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from ddcat.bundle import Bundle
from tests.serve.pictures import as_labels, as_png
from tests.serve.processes import free_port, server

WHITE = np.full((37, 53, 3), 255, np.uint8)
SLOW = """
import time
from ddcat_serve.engines.base import GraphEngine
infer = GraphEngine.infer
def slow(engine, images):
    time.sleep({seconds} if images.min() == 255 else 0)
    return infer(engine, images)
GraphEngine.infer = slow
"""  # white images take so long


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as threads:
        yield threads


def ask_http(address: str, model: str, picture: np.ndarray) -> httpx.Response:
    return httpx.post(f"{address}/v1/segment?model={model}", content=as_png(picture), timeout=60)


def ask_grpc(address: str, model: str, picture: np.ndarray) -> np.ndarray:
    with triton.InferenceServerClient(address) as client:
        image = triton.InferInput("image", [1, *picture.shape], "UINT8")
        image.set_data_from_numpy(picture[None])
        labels: np.ndarray = client.infer(model, [image]).as_numpy("labels")[0]
        return labels


def wait_until_all_work(address: str, calls: list["Future[object]"]) -> None:
    """Each engine has one white image in hand, and another one waits."""
    waiting = [f'ddcat_waiting_pixels{{model="{name}",version="1"}} {WHITE[..., 0].size}.0\n' for name in ("one", "two")]
    while not all(line in httpx.get(f"{address}/metrics").text for line in waiting):
        assert not any(call.done() for call in calls)
        time.sleep(0.05)


def status_of(call: "Future[np.ndarray]") -> str:
    with pytest.raises(InferenceServerException) as caught:
        call.result(30)
    return str(caught.value.status())


def test_what_does_not_end_is_given_up_after_one_drain_and_not_after_several(
    make_bundle: Callable[..., Bundle], pool: ThreadPoolExecutor
) -> None:
    bundles, port, drain = [make_bundle("one").path, make_bundle("two").path], free_port(), 4
    options = ("--grpc-port", port, "--grace", 0.5, "--drain", drain, "--timeout", 60)
    with server(*bundles, *options, before=SLOW.format(seconds=600)) as (process, address):
        by_http = [pool.submit(ask_http, address, name, WHITE) for name in ("one", "two")]
        by_grpc = [pool.submit(ask_grpc, f"127.0.0.1:{port}", name, WHITE) for name in ("one", "two")]
        wait_until_all_work(address, [*by_http, *by_grpc])
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        time.sleep(1.5)  # the grace is over
        assert status_of(pool.submit(ask_grpc, f"127.0.0.1:{port}", "one", WHITE)) == "StatusCode.UNAVAILABLE"
        assert not any(call.done() for call in (*by_http, *by_grpc))
        process.wait(30)
        assert drain <= time.monotonic() - began < 2 * drain  # two models, HTTP and gRPC one after the other: four drains
        assert all(call.exception(30) is not None or call.result().status_code >= 500 for call in by_http)
        assert all(call.exception(30) is not None for call in by_grpc)


def test_what_ends_within_the_drain_is_answered_by_http_and_grpc(
    make_bundle: Callable[..., Bundle], oracle: Callable, pool: ThreadPoolExecutor
) -> None:
    bundles, port = [make_bundle("one").path, make_bundle("two").path], free_port()
    options = ("--grpc-port", port, "--grace", 0.1, "--drain", 60, "--timeout", 60)
    with server(*bundles, *options, before=SLOW.format(seconds=1.5)) as (process, address):
        by_http = [pool.submit(ask_http, address, name, WHITE) for name in ("one", "two")]
        by_grpc = [pool.submit(ask_grpc, f"127.0.0.1:{port}", name, WHITE) for name in ("one", "two")]
        wait_until_all_work(address, [*by_http, *by_grpc])
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        expected = oracle(WHITE[None])[0][0]
        for labels in (*(as_labels(call.result(30).content) for call in by_http), *(call.result(30) for call in by_grpc)):
            np.testing.assert_array_equal(labels, expected)


def test_a_second_signal_ends_it_at_once(make_bundle: Callable[..., Bundle], pool: ThreadPoolExecutor) -> None:
    bundles, port = [make_bundle("one").path, make_bundle("two").path], free_port()
    options = ("--grpc-port", port, "--grace", 0.1, "--drain", 600, "--timeout", 60)
    with server(*bundles, *options, before=SLOW.format(seconds=600)) as (process, address):
        by_http = [pool.submit(ask_http, address, name, WHITE) for name in ("one", "two")]
        by_grpc = [pool.submit(ask_grpc, f"127.0.0.1:{port}", name, WHITE) for name in ("one", "two")]
        wait_until_all_work(address, [*by_http, *by_grpc])
        process.send_signal(signal.SIGTERM)
        time.sleep(1)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
