"""`python -m tunnel` is `trio-tunnel`."""

from tunnel.cli import main

main()
