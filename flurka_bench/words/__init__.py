"""The words that everyone uses: errors, units, sizes, ops, statistics. They import nothing else."""
