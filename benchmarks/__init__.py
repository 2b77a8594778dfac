"""Programs that write JSON and assert correctness before they report a time."""
