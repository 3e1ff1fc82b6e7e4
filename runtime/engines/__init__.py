"""TensorRT and TensorRT-RTX engines: built, cached, looked into. An engine is a cache of its graph."""
