"""LeRobot datasets, v3.0: reading, writing, and adding columns without re-encoding video."""
