"""From a checkpoint to a bundle: the main branch alone, as ONNX, proven against PyTorch."""
