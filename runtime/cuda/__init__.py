"""CUDA memory, streams, events and graphs behind one small interface, with a provider per library."""
