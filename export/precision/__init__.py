"""Lower precision, authored and proven: FP16 trunks, sensitivity to INT8, mixed precision."""
