"""Golden."""
