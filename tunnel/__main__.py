"""`python -m tunnel` is `trio-tunnel`."""

from tunnel.cli.main import main

main()
