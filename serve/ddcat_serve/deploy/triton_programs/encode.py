"""Encode labels as the bytes of a palette PNG of the file's size, as ddcat's own server does."""

from pathlib import Path

import numpy as np
import triton_python_backend_utils as triton

from ddcat.manifest import parse_manifest
from ddcat.preprocess import restore
from ddcat_serve.http.encoding import encode_mask


class TritonPythonModel:
    def initialize(self, args):
        file = Path(args["model_repository"]) / "manifest.json"
        self.classes = parse_manifest(file.read_bytes(), str(file)).class_table()

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        labels = triton.get_input_tensor_by_name(request, "labels").as_numpy()
        height, width = triton.get_input_tensor_by_name(request, "size").as_numpy().tolist()
        mask = encode_mask(restore(labels[0], (height, width)), self.classes)
        return triton.InferenceResponse([triton.Tensor("mask", np.array([mask], np.object_))])
