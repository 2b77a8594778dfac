"""LoRA files in whatever format: what they change in a transformer, told from their headers; knows no family."""
