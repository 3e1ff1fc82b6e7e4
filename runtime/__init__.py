"""Ground floor: what ships to the device. NumPy at import; every other library opens late, behind one door each."""
