"""`python -m featstore`, the same as the command."""

from featstore.cli import main

if __name__ == "__main__":
    main()
