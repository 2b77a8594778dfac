"""What fb-serve costs over the bare loop, and what many jobs with cancels, kills and bad requests leave behind."""
