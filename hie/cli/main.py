"""The `hie` command: parses, calls a domain function, prints. Errors are one plain line on stderr."""

from __future__ import annotations

import sys

import click

from hie.core.errors import ConfigurationError, HieError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="hie")
def hie() -> None:
    """The exchange: find out who a patient is, ask everybody who knows her, release what her consent allows."""


def main() -> None:
    """Entry point: exit 0 ok, 1 the check failed, 2 wrong usage."""
    try:
        hie.main(prog_name="hie", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except click.exceptions.Exit as leave:
        sys.exit(leave.exit_code)
    except click.Abort:
        sys.exit(130)
    except HieError as error:
        click.echo(f"hie: {error.message}", err=True)
        sys.exit(2 if isinstance(error, ConfigurationError) else 1)


if __name__ == "__main__":
    main()
