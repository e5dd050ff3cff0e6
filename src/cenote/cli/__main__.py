"""`python -m cenote.cli`, for a machine whose PATH has no `cenote`, and for `cenote up --detach`."""

from cenote.cli import main

main()
