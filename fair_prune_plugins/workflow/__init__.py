"""From a configuration to a decision: data, dense model, pruning, fine-tuning, ONNX, timing, report."""
