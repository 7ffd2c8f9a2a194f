"""An attack on labels alone reaches an exported engine, which gives nothing else."""

import torch
from torch import Tensor

from ddcat.bundle import Bundle
from ddcat.engines import open_engine
from ddcat.metrics import confusion_counts, miou
from ddcat_export.parity import sample_images
from ddcat_train.attacks import dla


def test_dla_lowers_the_miou_of_an_engine(bundle: Bundle) -> None:
    received = sample_images((3, 64, 80), 0)
    images = torch.from_numpy(received).permute(0, 3, 1, 2).float() / 255
    asked: list[Tensor] = []
    with open_engine(bundle, threads=1) as engine:

        def predict(candidates: Tensor) -> Tensor:
            pixels = (candidates * 255).round().to(torch.uint8)
            asked.append(pixels)
            return torch.from_numpy(engine.infer(pixels.permute(0, 2, 3, 1).contiguous().numpy()).labels)

        labels = predict(images).long()  # its own answers, so that it begins with a mIoU of 1
        labels[:, :5] = 255
        attacked = dla(predict, images, labels, epsilon=8 / 255, queries=40, seeds=torch.arange(3), eight_bit=True)
        assert len(asked) == 1 + 40
        answers = predict(attacked)
    assert all((pixels.int() - asked[0].int()).abs().max() <= 8 for pixels in asked)
    assert ((attacked * 255).round() / 255 - attacked).abs().max() < 1e-6  # what was judged is what is sent
    figures = [miou(confusion_counts(t.numpy(), a.numpy(), 6)) for t, a in zip(labels, answers, strict=True)]
    assert max(figures) < 0.98
