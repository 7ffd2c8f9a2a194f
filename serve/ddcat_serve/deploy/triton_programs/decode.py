"""Decode the bytes of a JPEG, PNG or WebP file as ddcat's own server does."""

import triton_python_backend_utils as triton

from ddcat_serve.errors import RequestError
from ddcat_serve.http.decoding import decode

MAX_PIXELS = 2**25


class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        content = triton.get_input_tensor_by_name(request, "file").as_numpy().ravel()[0]
        try:
            image = decode(content, max_pixels=MAX_PIXELS)
        except RequestError as error:
            return triton.InferenceResponse(error=triton.TritonError(str(error)))
        return triton.InferenceResponse([triton.Tensor("image", image[None])])
