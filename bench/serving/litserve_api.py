"""LitServe with our engine, decoder and encoder, for load.py: python litserve_api.py BUNDLE PORT DEADLINE BATCH."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import litserve
import numpy as np
from fastapi import Request, Response

from ddcat.bundle import open_bundle
from ddcat.engines import open_engine
from ddcat_serve.http.decoding import decode
from ddcat_serve.http.encoding import encode_mask

ENGINE_CORE, OTHER_CORE = 0, 1


class Api(litserve.LitAPI):  # type: ignore[misc]
    """Image files to masks; LitServe starts a process for it."""

    def __init__(self, bundle: str, **options: Any) -> None:
        super().__init__(**options)
        self.bundle = bundle

    def setup(self, device: object) -> None:
        """Open the engine, in its process, which stays on the engine's core."""
        os.sched_setaffinity(0, {ENGINE_CORE})
        bundle = open_bundle(Path(self.bundle))
        self.classes, self.engine = bundle.manifest.class_table(), open_engine(bundle, threads=1)

    def decode_request(self, request: Request) -> Any:
        """Decode a file."""
        return decode(request["image"].file.read(), max_pixels=2**25)

    def batch(self, inputs: Sequence[Any]) -> Sequence[Any]:
        """Leave images as they are: they may have several sizes."""
        return inputs

    def predict(self, images: Any) -> Any:
        """Segment images of one size together, or one where there are no batches."""
        if isinstance(images, np.ndarray):
            return self.engine.infer(images[None]).labels[0]
        answers: dict[int, Any] = {}
        for shape in {image.shape for image in images}:
            places = [place for place, image in enumerate(images) if image.shape == shape]
            labels = self.engine.infer(np.stack([images[place] for place in places])).labels
            answers |= dict(zip(places, labels, strict=True))
        return [answers[place] for place in range(len(images))]

    def unbatch(self, output: Any) -> Any:
        """Give each its own."""
        return output

    def encode_response(self, output: Any) -> Response:
        """Encode a mask."""
        return Response(encode_mask(output, self.classes), media_type="image/png")


if __name__ == "__main__":
    bundle, port, deadline, batch = sys.argv[1:]
    os.sched_setaffinity(0, {OTHER_CORE})
    api = Api(bundle, max_batch_size=int(batch), batch_timeout=0.002)
    litserve.LitServer(api, accelerator="cpu", timeout=float(deadline)).run(
        port=int(port), generate_client_file=False, log_level="error"
    )
