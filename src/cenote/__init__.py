"""cenote: the state layer for agent swarms."""
