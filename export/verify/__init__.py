"""Every variant against fp32, in degrees and millimetres, on real crops; nothing that misses a gate is promoted."""
