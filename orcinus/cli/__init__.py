"""The command line."""


def main() -> None:
    """Run the orcinus program."""
