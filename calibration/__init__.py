"""Calibration always means activation ranges for INT8; camera parameters are *intrinsics* (posekit.runtime.intrinsics)."""
