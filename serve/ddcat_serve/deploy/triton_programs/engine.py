"""Compute the model with ddcat's engine in Triton's Python backend."""

from pathlib import Path

import numpy as np
import triton_python_backend_utils as triton

from ddcat.bundle import open_bundle
from ddcat.engines import open_engine
from ddcat.engines.errors import EngineError


class TritonPythonModel:
    def initialize(self, args):
        bundle = open_bundle(Path(args["model_repository"]) / "bundle")
        self.engine = open_engine(bundle)

    def execute(self, requests):
        """Compute requests together; Triton has batched them by size."""
        images = [triton.get_input_tensor_by_name(request, "image").as_numpy() for request in requests]
        try:
            outputs = self.engine.infer(np.concatenate(images))
        except EngineError as error:
            return [triton.InferenceResponse(error=triton.TritonError(str(error))) for _ in requests]
        responses, first = [], 0
        for batch in images:
            part = slice(first, first := first + len(batch))
            tensors = [
                triton.Tensor(entry.name, np.ascontiguousarray(getattr(outputs, entry.name)[part]))
                for entry in self.engine.outputs
            ]
            responses.append(triton.InferenceResponse(tensors))
        return responses

    def finalize(self):
        self.engine.close()
