"""What compiles and runs a graph, a folder for each library; knows contracts, and neither bundles nor models."""
