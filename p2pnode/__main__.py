"""`python -m p2pnode` is the command line."""

from p2pnode.cli.main import main

main()
