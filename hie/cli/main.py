"""The `hie` command: parses, calls a domain function, prints. Errors are one plain line on stderr."""

from __future__ import annotations

import sys
from importlib import import_module

import click

from hie.core.errors import ConfigurationError, HieError

COMMANDS = {
    "apply": "hie.cli.apply",
    "audit": "hie.cli.audit",
    "consent": "hie.cli.consent",
    "db": "hie.cli.db",
    "demo": "hie.cli.demo",
    "member": "hie.cli.member",
    "mpi": "hie.cli.mpi",
    "serve": "hie.cli.serve",
    "witness": "hie.cli.witness",
}
"""Command -> its module, imported only when the command is named: the start-up of one pays for no other."""


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = COMMANDS.get(cmd_name)
        return getattr(import_module(module), cmd_name) if module else None


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="hie")
def hie() -> None:
    """The exchange: find out who a patient is, ask everybody who knows her, release what her consent allows."""


def main() -> None:
    """Entry point: exit 0 ok, 1 the check failed, 2 wrong usage."""
    try:
        code = hie.main(prog_name="hie", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as help_page:
        help_page.show()
        sys.exit(2)
    except click.ClickException as error:
        click.echo(f"hie: {error.format_message()} See `hie --help`.", err=True)
        sys.exit(2)
    except click.exceptions.Exit as leave:
        sys.exit(leave.exit_code)
    except click.Abort:
        sys.exit(130)
    except HieError as error:
        click.echo(f"hie: {error.message}", err=True)
        sys.exit(2 if isinstance(error, ConfigurationError) else 1)
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
