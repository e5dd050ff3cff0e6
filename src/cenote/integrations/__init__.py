"""Doors for agent frameworks: each keeps what its framework asks it to keep in a store. Install them as extras."""
