"""Many videos: tasks for worker processes, one for each GPU, or for the actors of a Ray cluster."""
