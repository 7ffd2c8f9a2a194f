"""Bodies of requests, and what responses hold."""

import io
from typing import Any

import httpx
import numpy as np
from fastapi import FastAPI
from PIL import Image

INFER = "/v2/models/small/infer"
IMAGE = np.full((1, 8, 8, 3), 7, np.uint8)
VALUES = IMAGE.ravel().tolist()


def as_png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def as_labels(content: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(content))
    assert image.mode == "P"
    return np.asarray(image)


def asking(app: FastAPI) -> httpx.AsyncClient:
    """Open a client of an application in the same event loop."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


def refused(response: httpx.Response) -> tuple[int, str]:
    assert list(response.json()) == ["error"]
    return response.status_code, response.json()["error"]


def body_of(image: np.ndarray, data: Any = None, **changes: Any) -> dict[str, Any]:
    tensor = {
        "name": "image",
        "shape": list(image.shape),
        "datatype": "UINT8",
        "data": image.ravel().tolist() if data is None else data,
    }
    return {"inputs": [{**tensor, **changes}]}


def tensor_of(output: dict[str, Any]) -> np.ndarray:
    kinds = {"UINT8": np.uint8, "FP32": np.float32}
    return np.array(output["data"], kinds[output["datatype"]]).reshape(output["shape"])
