"""Hypothesis without a deadline per example: the machine may be busy, and each test has its limit."""

from hypothesis import settings

settings.register_profile("cenote", deadline=None)
settings.load_profile("cenote")
