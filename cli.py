"""Runs the command line from a checkout: `python cli.py generate "Hello" -s happy`."""

from localsteer.commands import main

if __name__ == "__main__":
    main()
