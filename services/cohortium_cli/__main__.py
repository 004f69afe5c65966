"""`cohortium`: one command for operators, hospitals' IT and newcomers."""

from cohortium_cli.app import app


def main() -> None:
    """The console script's entry."""
    app()


if __name__ == "__main__":
    main()
