"""Images and videos that a run starts from, or keeps to."""
