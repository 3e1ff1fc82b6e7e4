"""posekit: trained 6D pose models to measured, verified bundles, and bundles to poses on the edge."""

__version__ = "0.1.0"
