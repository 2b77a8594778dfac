"""From a torch module to an ONNX graph, for any family: loading, tracing, attention, weights, and an audit."""
