"""Published pose systems, one file each."""
