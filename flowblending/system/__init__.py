"""What every stage uses: the terminal, whole files, checksums, processes."""
