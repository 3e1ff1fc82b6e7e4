"""`posekit bench`: latency of a bundle on this machine, measured like an instrument."""
