"""``fb-compare``: schedules and step caches on the same prompts and noise, measured, and a page to look at."""
