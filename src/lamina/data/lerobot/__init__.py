"""LeRobot datasets, v3.0: reading, writing, new columns beside untouched video."""
