"""What there is to run: the case, the registry of mechanisms, and suites of cases. No torch."""
