"""Vectors that an interpreter of sampling programs in another language is held to."""
