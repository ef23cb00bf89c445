"""`python -m hie`."""

from hie.cli.main import main

main()
