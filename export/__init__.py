"""The workshop, host only: from a checkpoint, meshes and a recipe to a verified bundle. Needs the `export` extra."""
