"""From trained parts to a bundle: ONNX graphs, a merged checkpoint, measured parity."""
