"""Which documents help to answer a question: ONNX encoders, towers, top-k. No torch."""
