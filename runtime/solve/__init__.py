"""From 2D-3D pairs to a pose: random triples, robust least squares, and the two sides of a plane."""
