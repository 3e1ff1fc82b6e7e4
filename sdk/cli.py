"""The command line: parse, one call, render."""


def main() -> None:
    """Entry point of the `posekit` command."""
