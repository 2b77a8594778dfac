"""LTX-Video: transformer, VAE and signal as graphs; knows no other family."""
