"""What a build claims of its bundle, how each claim is measured, and the report of it."""
