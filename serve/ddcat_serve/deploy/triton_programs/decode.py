"""Make the input of the graph from the bytes of a JPEG, PNG or WebP file as ddcat's own server does."""

from pathlib import Path

import numpy as np
import triton_python_backend_utils as triton

from ddcat.manifest import parse_manifest
from ddcat.preprocess import preprocess
from ddcat_serve.errors import RequestError
from ddcat_serve.http.decoding import decode

MAX_PIXELS = 2**25


class TritonPythonModel:
    def initialize(self, args):
        file = Path(args["model_repository"]) / "manifest.json"
        self.rule = parse_manifest(file.read_bytes(), str(file)).preprocessing

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        content = triton.get_input_tensor_by_name(request, "file").as_numpy().ravel()[0]
        try:
            made = preprocess(decode(content, self.rule, max_pixels=MAX_PIXELS), self.rule)
        except RequestError as error:
            return triton.InferenceResponse(error=triton.TritonError(str(error)))
        size = np.array(made.size, np.int32)
        return triton.InferenceResponse([triton.Tensor("image", made.pixels[None]), triton.Tensor("size", size)])
