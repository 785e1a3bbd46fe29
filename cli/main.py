"""The ``davit`` command's entrance. Commands load when they are called, so that a short one starts at once."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

import click

from foundation.errors import DavitError

COMMANDS: dict[str, str] = {
    # the host
    "up": "cli.host.commands:up",
    "down": "cli.host.commands:down",
    "status": "cli.host.commands:status",
    "doctor": "cli.host.commands:doctor",
    "dashboard": "cli.host.commands:dashboard",
    "stack:build": "cli.host.commands:stack_build",
    "slugs:export": "cli.host.commands:slugs_export",
    "stack:export": "cli.host.commands:stack_export",
    "backup": "cli.host.commands:backup",
    "restore": "cli.host.commands:restore",
    "config:rotate-keys": "cli.host.commands:rotate_keys",
    "install": "cli.host.commands:install",
    "host:user-data": "cli.host.machines:user_data",
    "host:seed": "cli.host.machines:seed",
    "host:check": "cli.host.machines:check",
    # apps, through the API
    "apps": "cli.apps.apps:apps",
    "apps:create": "cli.apps.apps:create",
    "apps:info": "cli.apps.apps:info",
    "apps:rename": "cli.apps.apps:rename",
    "apps:destroy": "cli.apps.apps:destroy",
    "apps:leave": "cli.apps.access:leave",
    "apps:diff": "cli.apps.differences:diff",
    "apps:open": "cli.apps.apps:open_app",
    "create": "cli.apps.apps:create",
    "info": "cli.apps.apps:info",
    "rename": "cli.apps.apps:rename",
    "destroy": "cli.apps.apps:destroy",
    "open": "cli.apps.apps:open_app",
    "config": "cli.apps.config:config",
    "config:get": "cli.apps.config:get",
    "config:set": "cli.apps.config:set_",
    "config:unset": "cli.apps.config:unset",
    "ps": "cli.apps.ps:ps",
    "ps:scale": "cli.apps.ps:scale",
    "ps:type": "cli.apps.ps:type_",
    "ps:restart": "cli.apps.ps:restart",
    "ps:stop": "cli.apps.ps:stop",
    "ps:isolation": "cli.apps.ps:isolation",
    "ps:resize": "cli.apps.ps:resize",
    "ps:migrate": "cli.apps.ps:migrate",
    "ps:usage": "cli.apps.ps:usage",
    "ps:sleep": "cli.apps.ps:sleep",
    "scale": "cli.apps.ps:scale",
    "restart": "cli.apps.ps:restart",
    "logs": "cli.apps.logs:logs",
    "run": "cli.apps.run:run",
    "run:detached": "cli.apps.run:detached",
    "run:inside": "cli.apps.run:inside",
    "ps:exec": "cli.apps.run:exec_",
    "ps:copy": "cli.apps.run:copy",
    "ps:forward": "cli.apps.forward:forward",
    "ps:socks": "cli.apps.forward:socks",
    "ps:crashes": "cli.apps.history:crashes",
    "activity": "cli.apps.history:activity",
    "releases": "cli.apps.releases:releases",
    "releases:info": "cli.apps.releases:info",
    "releases:output": "cli.apps.releases:show_output",
    "rollback": "cli.apps.releases:rollback",
    "releases:rollback": "cli.apps.releases:rollback",
    "builds": "cli.apps.builds:builds",
    "builds:create": "cli.apps.builds:create",
    "builds:info": "cli.apps.builds:info",
    "builds:output": "cli.apps.builds:show_output",
    "builds:cancel": "cli.apps.builds:cancel",
    "builds:cache:purge": "cli.apps.builds:purge_cache",
    "domains": "cli.apps.domains:domains",
    "domains:add": "cli.apps.domains:add",
    "domains:remove": "cli.apps.domains:remove",
    "buildpacks": "cli.apps.buildpacks:buildpacks",
    "buildpacks:set": "cli.apps.buildpacks:set_",
    "buildpacks:add": "cli.apps.buildpacks:add",
    "buildpacks:remove": "cli.apps.buildpacks:remove",
    "buildpacks:clear": "cli.apps.buildpacks:clear",
    "buildpacks:search": "cli.apps.registry:search",
    "buildpacks:info": "cli.apps.registry:info",
    "buildpacks:versions": "cli.apps.registry:versions",
    "maintenance": "cli.apps.apps:maintenance",
    "maintenance:on": "cli.apps.apps:maintenance_on",
    "maintenance:off": "cli.apps.apps:maintenance_off",
    "git:remote": "cli.apps.git:remote",
    "git:clone": "cli.apps.git:clone",
    "git:credentials": "cli.apps.git:credentials",
    "heroku:env": "cli.apps.heroku_env:env",
    "access": "cli.apps.access:access",
    "access:add": "cli.apps.access:access_add",
    "access:remove": "cli.apps.access:access_remove",
    "keys": "cli.apps.access:keys",
    "keys:add": "cli.apps.access:keys_add",
    "keys:remove": "cli.apps.access:keys_remove",
    "keys:clear": "cli.apps.access:keys_clear",
    "accounts": "cli.apps.access:accounts",
    "accounts:create": "cli.apps.access:accounts_create",
    "accounts:remove": "cli.apps.access:accounts_remove",
    "accounts:2fa:disable": "cli.apps.access:accounts_two_factor_disable",
    "accounts:password": "cli.apps.access:accounts_password",
    "certs": "cli.apps.certs:certs",
    "certs:add": "cli.apps.certs:certs_add",
    "certs:info": "cli.apps.certs:certs_info",
    "certs:update": "cli.apps.certs:certs_update",
    "certs:remove": "cli.apps.certs:certs_remove",
    "drains": "cli.apps.drains:drains",
    "drains:add": "cli.apps.drains:drains_add",
    "drains:remove": "cli.apps.drains:drains_remove",
    "features": "cli.apps.features:features",
    "features:info": "cli.apps.features:features_info",
    "features:enable": "cli.apps.features:features_enable",
    "features:disable": "cli.apps.features:features_disable",
    "labs": "cli.apps.features:labs",
    "labs:info": "cli.apps.features:labs_info",
    "labs:enable": "cli.apps.features:labs_enable",
    "labs:disable": "cli.apps.features:labs_disable",
    "pipelines": "cli.apps.pipelines:pipelines",
    "pipelines:create": "cli.apps.pipelines:pipelines_create",
    "pipelines:add": "cli.apps.pipelines:pipelines_add",
    "pipelines:update": "cli.apps.pipelines:pipelines_update",
    "pipelines:remove": "cli.apps.pipelines:pipelines_remove",
    "pipelines:info": "cli.apps.pipelines:pipelines_info",
    "pipelines:rename": "cli.apps.pipelines:pipelines_rename",
    "pipelines:destroy": "cli.apps.pipelines:pipelines_destroy",
    "pipelines:transfer": "cli.apps.pipelines:pipelines_transfer",
    "pipelines:promote": "cli.apps.pipelines:pipelines_promote",
    "webhooks": "cli.apps.webhooks:webhooks",
    "webhooks:add": "cli.apps.webhooks:webhooks_add",
    "webhooks:info": "cli.apps.webhooks:webhooks_info",
    "webhooks:update": "cli.apps.webhooks:webhooks_update",
    "webhooks:remove": "cli.apps.webhooks:webhooks_remove",
    "webhooks:deliveries": "cli.apps.webhooks:webhooks_deliveries",
    "webhooks:deliveries:info": "cli.apps.webhooks:webhooks_deliveries_info",
    "webhooks:events": "cli.apps.webhooks:webhooks_events",
    "webhooks:events:info": "cli.apps.webhooks:webhooks_events_info",
    "authorizations": "cli.apps.tokens:authorizations",
    "authorizations:create": "cli.apps.tokens:authorizations_create",
    "authorizations:info": "cli.apps.tokens:authorizations_info",
    "authorizations:update": "cli.apps.tokens:authorizations_update",
    "authorizations:revoke": "cli.apps.tokens:authorizations_revoke",
    "authorizations:rotate": "cli.apps.tokens:authorizations_rotate",
    "clients": "cli.apps.clients:clients",
    "clients:create": "cli.apps.clients:clients_create",
    "clients:info": "cli.apps.clients:clients_info",
    "clients:update": "cli.apps.clients:clients_update",
    "clients:rotate": "cli.apps.clients:clients_rotate",
    "clients:destroy": "cli.apps.clients:clients_destroy",
    "sessions": "cli.apps.tokens:sessions",
    "sessions:destroy": "cli.apps.tokens:sessions_destroy",
    "2fa": "cli.apps.tokens:two_factor",
    "2fa:enable": "cli.apps.tokens:two_factor_enable",
    "2fa:disable": "cli.apps.tokens:two_factor_disable",
    "2fa:recovery-codes": "cli.apps.tokens:two_factor_recovery_codes",
    "apps:transfer": "cli.apps.transfers:apps_transfer",
    "transfers": "cli.apps.transfers:transfers",
    "transfers:accept": "cli.apps.transfers:transfers_accept",
    "transfers:decline": "cli.apps.transfers:transfers_decline",
    "transfers:cancel": "cli.apps.transfers:transfers_cancel",
    "setup": "cli.apps.setups:setup",
    "setup:info": "cli.apps.setups:setup_info",
    "regions": "cli.apps.catalogue:regions",
    "stacks": "cli.apps.catalogue:stacks",
    "config:edit": "cli.apps.config:edit",
    "ps:wait": "cli.apps.ps:wait",
    "releases:retry": "cli.apps.releases:retry",
    "domains:info": "cli.apps.domains:info",
    "domains:update": "cli.apps.domains:update",
    "domains:wait": "cli.apps.domains:wait",
    "domains:clear": "cli.apps.domains:clear",
    "completions": "cli.apps.completions:completions",
    "login": "cli.apps.auth:login",
    "logout": "cli.apps.auth:logout",
    "auth:login": "cli.apps.auth:login",
    "auth:logout": "cli.apps.auth:logout",
    "auth:2fa": "cli.apps.tokens:two_factor",
    "auth:token": "cli.apps.auth:token",
    "auth:whoami": "cli.apps.auth:whoami",
}
"""Name → ``module:function`` of its click command. Modules listed here are imported only when the command is called."""

SECOND_NAMES: dict[str, str] = {
    "whoami": "auth:whoami",
    "twofactor": "auth:2fa",
    "leave": "apps:leave",
    "config:remove": "config:unset",
    "ps:kill": "ps:stop",
    "dyno:kill": "ps:stop",
    "dyno:stop": "ps:stop",
    "dyno:restart": "ps:restart",
    "dyno:scale": "ps:scale",
    "dyno:resize": "ps:type",
    "authorizations:destroy": "authorizations:revoke",
}
"""What the heroku command takes for a name, too (and ps:resize, which changes a running dyno here)."""
COMMANDS |= {second: COMMANDS[first] for second, first in SECOND_NAMES.items()}


class LazyCommands(click.Group):
    """A group whose commands are listed in :data:`COMMANDS` and imported on demand."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        place = COMMANDS.get(cmd_name)
        if place is None:
            return None
        module, _, function = place.partition(":")
        command: click.Command = getattr(importlib.import_module(module), function)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            raise click.UsageError(f"There is no command “{name}”.{_nearest(name)} `davit --help` lists all.", ctx)
        return super().resolve_command(ctx, args)


def _nearest(name: str) -> str:
    import difflib

    close = difflib.get_close_matches(name, COMMANDS, n=1)
    return f" Did you mean “{close[0]}”?" if close else ""


@click.group(cls=LazyCommands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option("0.1.0", prog_name="davit")
def cli() -> None:
    """Davit: git push, and the app is live, on a machine that you own."""


def main() -> None:
    """Run the command line; a failure is a sentence on standard error and exit status 1, misuse of a command one and 2."""
    try:
        code = cli(prog_name="davit", standalone_mode=False)  # else click says in its own words what is wrong
        sys.exit(code if isinstance(code, int) else 0)
    except click.ClickException as error:
        sys.exit(_misused(error))
    except click.Abort:
        click.echo("Aborted!", err=True)
        sys.exit(1)
    except DavitError as error:
        click.echo(f"Error: {error.message}", err=True)
        sys.exit(1)
    except ModuleNotFoundError as missing:
        click.echo(f"Error: {_not_installed(missing)}", err=True)
        sys.exit(1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is still to be written at the end goes nowhere
        sys.exit(141)  # as a shell reports SIGPIPE: the reader had enough


def _misused(error: click.ClickException) -> int:
    """Say what is wrong with the command line and where its help is; the exit status."""
    from cli.output import warn

    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return error.exit_code
    warn(error.format_message())
    context = getattr(error, "ctx", None)
    if context is not None and context.command.get_help_option(context):
        warn(f"`{context.command_path} --help` shows how it is used.")
    return error.exit_code


def _not_installed(missing: ModuleNotFoundError) -> str:
    """What to do about a package that is not there: after an upgrade, or where only the commands for apps were installed.

    Raises:
        ModuleNotFoundError: it is one of Davit's own modules, which is Davit's fault.
    """
    checkout, name = Path(__file__).resolve().parents[1], (missing.name or "").partition(".")[0]
    if not name or (checkout / name).is_dir():
        raise missing
    return (
        f"this command needs the Python package “{name}”, which is not in {checkout}/.venv;"
        " `make setup` there installs what a host needs."
    )


if __name__ == "__main__":
    main()
