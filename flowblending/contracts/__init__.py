"""The file contracts: what the stages write for one another, each with its format number."""
