"""An operator's server is found, stopped and started as it was, whoever controls it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pgkeep.errors import ConfigError, ServerError, TargetError
from pgkeep.postgres.account import give_to, server_account
from pgkeep.postgres.running import (
    ServerPlace,
    identify_server,
    locate_server,
    postmasters,
    read_control_file,
    server_status,
)
from pgkeep.postgres.service_control import ServiceControl, started_with
from support.servers import sql

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pgkeep.postgres.server import ThrowawayServer
    from support.servers import MakeServer


@pytest.fixture
def service(make_server: MakeServer) -> Iterator[ThrowawayServer]:
    """A server that we let live on: its next process is not our child."""
    server = make_server(17, settings={"work_mem": "7MB"})
    server.detach()
    yield server
    server.stop("immediate")


def identity(server: ThrowawayServer) -> int:
    control = read_control_file(server.data_directory)
    assert control is not None
    return control.system_identifier


def find_server(dsn: str, configured: Path | None, system_identifier: int) -> ServerPlace:
    """Both steps."""
    place = locate_server(dsn, configured)
    identify_server(place, system_identifier)
    return place


def test_pg_ctl_starts_the_server_with_the_options_that_it_was_started_with(service: ThrowawayServer) -> None:
    """And the log goes where it went."""
    control = ServiceControl(service.data_directory, major=17)
    assert control.log_file == service.log_file

    control.stop()
    assert (postmasters(service.data_directory), server_status(service.data_directory).pid) == ([], None)
    control.stop()
    control.start()

    assert sql(service.dsn(), "SHOW work_mem") == [("7MB",)]
    assert server_status(service.data_directory).state == "ready"
    assert "--work_mem=7MB" in started_with(service.data_directory)
    assert f"pg_ctl stop -D {service.data_directory}" in control.stop_command


def test_configured_commands_stop_and_start_it(service: ThrowawayServer, work_dir: Path) -> None:
    """They may return before the server does what they say."""
    account = server_account()
    become = f"setpriv --reuid={account.name} --regid={account.gid} --init-groups " if account else ""
    pg_ctl = f"{become}{service.binaries.path('pg_ctl')} -D {service.data_directory} -W"
    options = f"-c listen_addresses= -c unix_socket_directories={service.socket_directory} -c work_mem=9MB"
    control = ServiceControl(
        service.data_directory,
        major=17,
        stop=f"touch {work_dir}/stopped; {pg_ctl} stop",
        start=f"{pg_ctl} -o '{options}' -l {service.log_file} start",
    )

    control.stop()
    assert (work_dir / "stopped").exists()
    assert postmasters(service.data_directory) == []
    control.start()

    assert sql(service.dsn(), "SHOW work_mem") == [("9MB",)]


def test_a_systemd_unit_is_found_by_its_main_process_and_used(
    service: ThrowawayServer, work_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No systemd is here: a program of its name notes what it is told, and stops the real server."""
    program = work_dir / "systemctl"
    program.write_text(
        f'#!/bin/sh\necho "$@" >> {work_dir}/told\n'
        f'case "$1" in stop) kill -INT $(head -1 {service.data_directory}/postmaster.pid);; start) exit 5;; esac\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{work_dir}:{os.environ['PATH']}")
    control = ServiceControl(service.data_directory, major=17, unit="postgresql@17-main.service")

    control.stop()
    with pytest.raises(ServerError, match=r"systemctl start postgresql@17-main\.service: exit code 5"):
        control.start()

    assert (work_dir / "told").read_text().splitlines() == [
        "stop postgresql@17-main.service",
        "start postgresql@17-main.service",
    ]


def test_a_server_that_does_not_start_says_why(service: ThrowawayServer) -> None:
    """In the words of its log."""
    control = ServiceControl(service.data_directory, major=17)
    control.stop()
    service.configure("shared_buffers = nonsense")

    with pytest.raises(ServerError, match="invalid value for parameter"):
        ServiceControl(service.data_directory, major=17, options=[], log_file=service.log_file).start()


def test_commands_that_cannot_work_are_named(service: ThrowawayServer) -> None:
    """One half of a pair, a program that is not there, a server that does not heed."""
    with pytest.raises(ConfigError, match=r"server\.stop is set, and its opposite is not"):
        ServiceControl(service.data_directory, major=17, stop="true")
    with pytest.raises(ServerError, match="exit code 127"):
        ServiceControl(service.data_directory, major=17, stop="/no/such/program", start="true").stop()
    with pytest.raises(ServerError, match=r"did not stop in 0 s: true"):
        ServiceControl(service.data_directory, major=17, stop="true", start="true").stop(timeout=0.2)


def test_a_shell_in_the_data_directory_is_no_server(service: ThrowawayServer) -> None:
    """An operator's own, most likely."""
    with subprocess.Popen(["sleep", "60"], cwd=service.data_directory) as shell:
        ServiceControl(service.data_directory, major=17).stop()
        assert postmasters(service.data_directory) == []
        shell.kill()


def test_the_server_is_found_by_asking_it_and_by_the_configuration(service: ThrowawayServer) -> None:
    """Links are resolved, and a server that is down is found where it is configured."""
    link = service.directory / "link"
    link.symlink_to(service.data_directory)
    number = identity(service)

    assert find_server(service.dsn(), None, number).data_directory == service.data_directory
    assert find_server(service.dsn(), link, number).data_directory == service.data_directory
    service.stop()
    place = find_server(service.dsn(), service.data_directory, number)
    assert place.answer is None
    assert "does not answer" in place.notes[0]
    with pytest.raises(ConfigError, match="nobody says where") as caught:
        find_server(service.dsn(), None, number)
    assert "data_directory" in str(caught.value.hint)


def test_a_role_that_may_not_see_the_data_directory_is_told_which_setting_names_it(service: ThrowawayServer) -> None:
    sql(service.dsn(), "CREATE ROLE modest LOGIN")

    with pytest.raises(ConfigError, match="its role may not ask"):
        find_server(service.dsn(user="modest"), None, identity(service))
    assert find_server(service.dsn(user="modest"), service.data_directory, identity(service)).notes == []


def test_another_clusters_directory_is_refused(service: ThrowawayServer, make_server: MakeServer) -> None:
    """By its control file; by the server that answers; and a directory that holds no cluster at all."""
    other = make_server(15)

    with pytest.raises(TargetError, match="is of another cluster"):
        find_server(service.dsn(), service.data_directory, identity(service) + 1)
    with pytest.raises(TargetError, match="leads to a server that is not the one on"):
        find_server(other.dsn(), service.data_directory, identity(service))
    with pytest.raises(TargetError, match="is not a data directory"):
        find_server(service.dsn(), service.directory, identity(service))


def test_a_standby_here_is_not_taken_for_its_primary_elsewhere(service: ThrowawayServer, work_dir: Path) -> None:
    """Both have the same system identifier; the server that answers started at another moment, on another port."""
    copy = work_dir / "standby"
    subprocess.run(["cp", "-a", service.data_directory, copy], check=True)
    (copy / "postmaster.pid").unlink(missing_ok=True)
    give_to(server_account(), copy)

    with pytest.raises(TargetError, match="not the one on"):
        find_server(service.dsn(), copy, identity(service))


def test_two_servers_on_one_directory_are_refused(service: ThrowawayServer) -> None:
    """What a removed pid file makes possible; a process of a server is known by its name and where it works."""
    program = service.directory / "postgres"
    subprocess.run(["cp", "/bin/sleep", program], check=True)
    with subprocess.Popen([program, "60"], cwd=service.data_directory) as second:
        try:
            with pytest.raises(TargetError, match="several servers use"):
                find_server(service.dsn(), service.data_directory, identity(service))
        finally:
            second.kill()
