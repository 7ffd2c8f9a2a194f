"""Inference requests as JSON."""

from typing import Any

import numpy as np

INFER = "/v2/models/small/infer"
IMAGE = np.full((1, 8, 8, 3), 7, np.uint8)
VALUES = IMAGE.ravel().tolist()


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
