"""What TensorRT and ONNX Runtime refuse or silently mis-handle, found before they do."""
