"""What a run takes of a device's memory, planned from plain data before anything is read, and kept to while it runs."""
