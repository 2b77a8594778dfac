"""A Ray cluster: how one is reached, what its workers reserve, and whether a node has what they need."""
