"""A bundle as files: manifest, sizes and calibration; knows the back ends, and nothing of how one is built or run."""
