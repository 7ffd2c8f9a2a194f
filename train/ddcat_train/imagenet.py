"""Mean and standard deviation of ImageNet's pixels, (R, G, B) in [0, 1]: what pretrained backbones were normalised by."""

__all__ = ["MEAN", "STD"]

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
