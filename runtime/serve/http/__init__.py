"""Bundles behind OpenAI's video API: ``fb-serve``."""
