"""Run where the package kserve is: ask a server as its own clients do, over REST and gRPC, and print what they got."""

import asyncio
import json
import sys
from typing import Any

import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig

SHAPE = (1, 16, 24, 3)


def asked(binary: bool) -> InferRequest:
    image = InferInput("image", list(SHAPE), "UINT8")
    image.set_data_from_numpy(np.arange(np.prod(SHAPE), dtype=np.uint8).reshape(SHAPE), binary_data=binary)
    return InferRequest("small", [image], request_id="7", parameters={"timeout": 5_000_000})


async def answers(address: str, grpc_address: str) -> dict[str, Any]:
    rest, grpc = InferenceRESTClient(RESTConfig(protocol="v2")), InferenceGRPCClient(grpc_address)
    found = {
        "rest ready": await rest.is_server_ready(address) and await rest.is_model_ready(address, "small"),
        "grpc ready": await grpc.is_server_ready() and await grpc.is_model_ready("small"),
    }
    for name, binary in (("json", False), ("binary", True)):
        for kind, answer in (
            ("rest", await rest.infer(address, asked(binary), model_name="small")),
            ("grpc", await grpc.infer(asked(binary))),
        ):
            found[f"{kind} {name}"] = [answer.id, answer.outputs[0].name, answer.outputs[0].as_numpy().tolist()]
    await grpc.close()
    return found


if __name__ == "__main__":
    json.dump(asyncio.run(answers(*sys.argv[1:])), sys.stdout)
