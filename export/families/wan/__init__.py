"""Wan: transformer, VAE and signal as graphs; knows no other family."""
